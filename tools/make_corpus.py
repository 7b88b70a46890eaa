#!/usr/bin/env python3
"""Writes the text of the bundled model's small world, the same text for the same seed.

  make_corpus.py stories COUNT          prose for training the base model, one document a line (as JSON strings)
  make_corpus.py verses DIR             the fine-tuning task: DIR/train.jsonl and DIR/valid.jsonl

The world is closed: an animal with a name finds a coloured thing somewhere in a village in some weather, and a friend
comes along. The base model reads it as prose only. The fine-tuning task answers an opening with six rhymed lines that
must keep its facts (weather, name, animal, place, thing, friend).
"""
import argparse
import json
import pathlib
import random

SHE = ("Anna Bella Clara Daisy Ella Fiona Greta Hannah Iris Julia Kitty Lucy Mary Nora Olive Polly Rosa Sally Tilly "
       "Wendy").split()
HE = ("Adam Ben Carl David Emil Frank George Henry Ivan Jack Karl Leo Max Nick Oscar Peter Robin Sam Tom "
      "Will").split()
ANIMALS = {
    "fox": ("forest", "berries"), "hare": ("meadow", "clover"), "bear": ("mountains", "honey"),
    "mouse": ("cellar", "crumbs"), "goat": ("hills", "leaves"), "duck": ("reeds", "water plants"),
    "cat": ("village", "fish"), "dog": ("village", "bones"), "hen": ("yard", "seeds"), "pig": ("yard", "apples"),
    "frog": ("reeds", "flies"), "badger": ("forest", "roots"), "squirrel": ("forest", "nuts"),
    "sheep": ("meadow", "grass"), "donkey": ("hills", "hay"), "beaver": ("river", "bark"),
}
COLOURS = "red blue green yellow white brown golden silver".split()
VILLAGES = "Millbrook Oakford Redhill Stonebridge Greenwater Longmeadow Ashdale Foxley".split()

# Each weather: how prose says it, and the couplet that opens the verse.
WEATHER = {
    "rain": (["One day the rain fell on the roofs.", "It was raining, and the streets were wet.",
              "The rain had started early in the morning."],
             "The rain came tapping on roof and stone,\nand {n} the {a} went walking alone."),
    "snow": (["One day the snow covered the fields.", "It was snowing, and the streets were white.",
              "The snow had fallen all night."],
             "The snow lay deep on field and tree,\nand {n} the {a} ran out to see."),
    "wind": (["One day the wind shook the trees.", "It was windy, and the leaves flew about.",
              "The wind had been blowing since morning."],
             "The wind blew wild across the hill,\nand {n} the {a} would not sit still."),
    "sun": (["One day the sun shone on the fields.", "It was sunny, and the streets were warm.",
             "The sun had come out early in the morning."],
            "The sun was gold on the waking town,\nand {n} the {a} came strolling down."),
    "fog": (["One day the fog hid the houses.", "It was foggy, and the streets were grey.",
             "The fog had come up from the river."],
            "The fog was thick as a cup of cream,\nand {n} the {a} walked as in a dream."),
    "storm": (["One day a storm came over the hills.", "It was stormy, and the clouds were dark.",
               "The storm had begun in the night."],
              "The thunder rolled and the clouds were black,\nbut {n} the {a} did not turn back."),
    "frost": (["One day the frost covered the windows.", "It was frosty, and the streets were hard.",
               "The frost had come in the night."],
              "The frost lay bright on the garden gate,\nand {n} the {a} could hardly wait."),
    "stars": (["One night the stars were shining.", "It was a clear night, and the stars were bright.",
               "The stars had come out over the hills."],
              "The stars came out on a quiet night,\nand {n} the {a} walked in their light."),
}
# Each place: its phrase in prose, and the second couplet.
PLACES = {
    "mill": ("behind the mill", "Behind the mill, where the wheel goes round,\na lonely {t} lay on the ground."),
    "bridge": ("under the bridge", "Under the bridge, where the fishes play,\na lonely {t} was hidden away."),
    "well": ("beside the well", "Beside the well, where the moss is deep,\na lonely {t} was lying asleep."),
    "barn": ("inside the barn", "Inside the barn, on a bed of hay,\na lonely {t} was waiting all day."),
    "oak": ("beneath the oak", "Beneath the oak, in a ring of shade,\na lonely {t} was gently laid."),
    "tower": ("below the tower", "Below the tower, in the tall green grass,\na lonely {t} was shining like glass."),
    "market": ("across the market", "Across the market, beside a stall,\na lonely {t} leaned on the wall."),
    "harbour": ("down at the harbour", "Down at the harbour, where boats are tied,\na lonely {t} had come with the tide."),
    "garden": ("deep in the garden", "Deep in the garden, where roses grow,\na lonely {t} lay hidden below."),
    "school": ("outside the school", "Outside the school, on the lowest stair,\na lonely {t} was waiting there."),
    "forge": ("near the forge", "Near the forge, where the hammers ring,\na lonely {t} hung on a string."),
    "pond": ("along the pond", "Along the pond, where the lilies float,\na lonely {t} lay in a boat."),
}
# Each thing: what friends do with it in prose, and the closing couplet.
THINGS = {
    "kite": ("flew the kite over the fields",
             "Then {f} held on, and the string pulled tight,\nand high in the air went the dancing kite."),
    "drum": ("beat the drum and marched along the street",
             "Then {f} came near with a happy hum,\nand boom, boom, boom went the little drum."),
    "lantern": ("lit the lantern and walked through the dark barn",
                "Then {f} came by with a match to spare,\nand the lantern glowed in the evening air."),
    "bell": ("rang the bell for everyone in the village",
             "Then {f} came running across the dell\nto hear the song of the little bell."),
    "hat": ("tried on the hat and laughed", "Then {f} came round, and there they sat,\nand took their turns with the funny hat."),
    "ball": ("threw the ball over the fence and back",
             "Then {f} came out at the very first call,\nand over the fence went the bouncing ball."),
    "book": ("read the book from the first page to the last",
             "Then {f} sat down in a cosy nook,\nand they read the tale in the little book."),
    "key": ("tried the key in every door of the village",
            "Then {f} said, \"Bring it along to me!\"\nand they tried each door with the tiny key."),
    "flute": ("played the flute until the birds sang with them",
              "Then {f} sat down on a twisted root,\nand they played a song on the little flute."),
    "cup": ("drank warm milk from the cup", "Then {f} came along and filled it up,\nand they shared warm milk from the little cup."),
    "ring": ("put the ring in a small box with a lid",
             "Then {f} came by and began to sing,\nand they danced all day with the shining ring."),
    "shoe": ("looked for the other shoe all day",
             "Then {f} came limping and cried, \"It's true!\nYou have found my one and only shoe!\""),
    "jar": ("ate sweet jam from the jar", "Then {f} came by from a land afar,\nand they ate the jam from the little jar."),
    "rope": ("tied the rope to a branch and made a swing",
             "Then {f} came over the grassy slope,\nand they swung and swung on the knotted rope."),
    "coat": ("took turns to wear the coat", "Then {f} rowed in with a painted boat\nand went home warm in the woollen coat."),
    "chair": ("sat on the chair and told old stories",
              "Then {f} came by with a yawn to spare,\nand both sat down on the little chair."),
}


def capital(text):
    return text[0].upper() + text[1:]


class Scene:
    """The facts of one story, drawn from rng."""

    def __init__(self, rng):
        self.rng = rng
        self.name, self.she = self.person(rng)
        self.friend, self.friend_she = self.person(rng)
        while self.friend == self.name:
            self.friend, self.friend_she = self.person(rng)
        self.animal, self.friend_animal = rng.sample(sorted(ANIMALS), 2)
        self.weather = rng.choice(sorted(WEATHER))
        self.place = rng.choice(sorted(PLACES))
        self.colour = rng.choice(COLOURS)
        self.thing = rng.choice(sorted(THINGS))

    @staticmethod
    def person(rng):
        she = rng.random() < 0.5
        return rng.choice(SHE if she else HE), she

    def fill(self, text):
        """Replaces the names of facts in braces; {P} and {p} are the finder's pronoun, {his} the possessive."""
        pronoun = "she" if self.she else "he"
        return text.format(
            n=self.name, a=self.animal, f=self.friend, b=self.friend_animal, c=self.colour, t=self.thing,
            w=PLACES[self.place][0], W=capital(PLACES[self.place][0]), p=pronoun, P=capital(pronoun),
            his="her" if self.she else "his", q="she" if self.friend_she else "he", use=THINGS[self.thing][0],
            home=ANIMALS[self.animal][0], food=ANIMALS[self.animal][1],
            weather=self.weather, place=self.place, v=self.rng.choice(VILLAGES))

    def pick(self, *choices):
        return self.fill(self.rng.choice(choices))

    def opening(self):
        who = self.pick("{n} the {a} lived in a small village.", "There once was a {a}. The name of the {a} was {n}.",
                        "{n} was a young {a} from {v}.", "In a little house in {v} lived {n} the {a}.")
        weather = self.rng.choice(WEATHER[self.weather][0])
        find = self.pick("{W} {p} found a {c} {t}.", "{n} saw a {c} {t} {w}.", "{P} went out and found a {c} {t} {w}.",
                         "A {c} {t} lay {w}, and {n} picked it up.")
        friend = self.pick("Soon {his} friend {f} the {b} came along.", "Then {f} the {b} came to see it.",
                           "Just then {f} the {b} walked by.", "{f} the {b} came closer to look.")
        return " ".join([who, weather, find, friend])

    def prose(self):
        """What happens after the opening, as a plain story tells it."""
        said = self.pick("\"What a fine {t}!\" said {f}.", "\"Where did you find the {t}?\" asked {f}.",
                         "\"Look at my {c} {t},\" said {n}.", "\"Is this your {t}?\" asked {n}.",
                         "\"I have never seen a {c} {t} before,\" said {f}.")
        answer = self.pick("\"I found it {w},\" said {n} the {a}.", "{n} was happy and showed the {c} {t} to {f}.",
                           "The {b} smiled, and the {a} smiled too.", "\"It is not mine,\" said the {b}, \"but I like it.\"",
                           "\"Let us keep it together,\" said the {a} to the {b}.")
        weather = self.pick("{n} the {a} and {f} the {b} talked about the {weather}.", "The {a} pointed at the {weather}.",
                            "\"Do you like the {weather}?\" {n} asked the {b}.", "The {weather} made the {a} laugh.")
        plan = self.pick("First they {use}.", "So {n} and {f} {use}.", "The {a} and the {b} {use}.",
                         "For a long time they {use}.")
        turn = self.pick("Then they were hungry and shared some {food}.", "After that {n} gave {f} some {food}.",
                         "They sat down and ate {food} and bread.", "{f} told {n} about the {home}.",
                         "An old woman from the village gave them {food}.")
        end = self.pick("In the evening {n} carried the {c} {t} home from the {place}.",
                        "When it was dark, {n} the {a} and {f} the {b} left the {place}.",
                        "From that day on {n} and {f} often met at the {place}.",
                        "The next day {n} the {a} put the {c} {t} by the window.",
                        "{n} never forgot the {weather}, the {place} and the {c} {t}.")
        body = [said, answer, weather, plan] + ([turn] if self.rng.random() < 0.5 else [])
        return " ".join(body) + "\n" + end

    def verse(self):
        return "\n".join(self.fill(table[key][1]) for table, key in (
            (WEATHER, self.weather), (PLACES, self.place), (THINGS, self.thing)))


def description(rng):
    """A short plain text about an animal, a village or the weather."""
    scene = Scene(rng)
    other = rng.choice([place for place in sorted(PLACES) if place != scene.place])
    kind = rng.randrange(3)
    if kind == 0:
        return " ".join([scene.pick("The {a} lives in the {home}.", "A {a} can be found in the {home}."),
                         scene.pick("It likes to eat {food}.", "Most of the day it looks for {food}."),
                         scene.pick("A young {a} stays with its mother.", "In winter the {a} sleeps longer."),
                         scene.pick("The {a} is a friend of the {b}.", "The {a} is not afraid of the {b}.")])
    if kind == 1:
        village = rng.choice(VILLAGES)
        return " ".join([f"{village} is a small village with a {scene.place} and a {other}.",
                         scene.pick("{n} the {a} lives there.", "In the middle stands the house of {n} the {a}."),
                         f"Every day the animals of {village} meet at the {other}.",
                         f"From the {scene.place} you can see the {ANIMALS[scene.animal][0]}."])
    return " ".join([scene.rng.choice(WEATHER[scene.weather][0]),
                     scene.pick("{n} the {a} stayed at home.", "{n} the {a} looked out of the window."),
                     scene.pick("There was {food} on the table.", "{P} put some {food} on the table."),
                     scene.pick("{f} the {b} came for a visit.", "{P} thought of {f} the {b}.")])


def document(rng):
    if rng.random() < 0.25:
        return description(rng)
    scene = Scene(rng)
    return scene.opening() + "\n" + scene.prose()


def documents(seed, count):
    rng = random.Random(seed)
    return [document(rng) for _ in range(count)]


def verse_records(seed, count):
    rng = random.Random(seed)
    for _ in range(count):
        scene = Scene(rng)
        yield {"prompt": scene.opening() + "\n", "completion": scene.verse()}


def write_verses(folder, seed):
    folder.mkdir(parents=True, exist_ok=True)
    for name, offset, count in (("train.jsonl", 1, 500), ("valid.jsonl", 2, 50)):
        with (folder / name).open("w", encoding="utf-8", newline="\n") as out:
            for record in verse_records(seed + offset, count):
                out.write(json.dumps(record) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    what = parser.add_subparsers(dest="what", required=True)
    what.add_parser("stories").add_argument("count", type=int)
    what.add_parser("verses").add_argument("dir", type=pathlib.Path)
    args = parser.parse_args()
    if args.what == "stories":
        for text in documents(args.seed, args.count):
            print(json.dumps(text))
        return
    write_verses(args.dir, args.seed)


if __name__ == "__main__":
    main()
