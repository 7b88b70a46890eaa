#!/usr/bin/env python3
"""Writes tests/data/jinja.json: templates of our own and what Jinja2 makes of them, set up as transformers sets it up.
Needs jinja2. Usage: make_jinja.py [OUTPUT]"""
import json
import pathlib
import sys

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
    """{% generation %} renders its body; which text it was is tested elsewhere."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("body"), [], [], body).set_lineno(line)

    def body(self, caller):
        return caller()


def refuse(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


ENV = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
ENV.filters["tojson"] = tojson
ENV.globals["raise_exception"] = refuse

VARS = {
    "messages": [{"role": "system", "content": " Be kind. \n"}, {"role": "user", "content": "What's \"2+2\"? é漢\n"},
                 {"role": "assistant", "content": None, "tool_calls": [{"function": {
                     "name": "add", "arguments": {"a": 2, "b": 2.5e-7, "deep": [1, None, True]}}}]},
                 {"role": "tool", "content": "4"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nfour"}],
    "tools": [{"type": "function", "function": {"name": "add", "items": [1], "parameters": {"z": {"type": "int"}, "a": {}}}}],
    "n": 7, "x": 2.5, "yes": True, "nothing": None, "empty": "", "word": "Straße ünd\tmehr", "list": [3, 1, 2],
    "names": ["b", "A", "c", "a"], "dict": {"b": 1, "a": [1, "two"], "items": 3}, "bos_token": "<s>",
}

EXPRESSIONS = """
n + 1 | n - 10 | n * 3 | n / 2 | n // 2 | -n // 2 | n % 4 | -n % 4 | n ** 2 | 2 ** -1 | -2 ** 2 | x * 2 | x // 1 | -x % 2 | 7.0 % -3
1e16 | 1e15 | 1.0 | 1e-5 | 0.0001 | 123456.789 | 1 / 3 | 1_000 + 0x1f + 0b11 + 0o17 | 2 + 3 * 4 - 1 | (2 + 3) * 4 | yes + 1
'a' + 'b' | 'a' ~ 1 ~ none ~ true ~ x ~ [1, 'b'] | 'ab' * 3 | [1] * 2 + [3] | (1, 2) + (3,) | 'a' 'b' "c" | '%' ~ n
1 < 2 < 3 | 1 < 3 < 2 | 1 == 1.0 | true == 1 | 'a' != 'b' | 'a' < 'b' | 'é' > 'z' | [1, 2] == [1, 2] | (1,) == [1] | {'a': 1} == {'a': 1.0}
'a' in 'cat' | '' in 'cat' | 3 in list | 9 not in list | 'a' in dict | 'zz' in missing | none in [none] | not 'a' in 'b' | yes and nothing
nothing or 'else' | not nothing | yes and not empty | 'yes' if n > 3 else 'no' | 'yes' if n > 30 | ('a' if empty else 'b') ~ 'c'
missing | missing is defined | n is defined | missing.x is defined if missing else 'none' | nothing is none | n is number | x is float | n is integer
yes is integer | yes is boolean | word is string | dict is mapping | list is sequence | word is sequence | dict is iterable | n is iterable
yes is true | n is true | empty is false | n is even | n is odd | n is divisibleby 7 | n is divisibleby(2) | 'a' is eq 'a' | 3 is in list
n is not none | not n is none | 'A' is upper | 'Ab' is lower | '' is lower | n is gt 3 | n is le(7) | n is sameas n | none is sameas none | n is ne 7 and yes
word[0] | word[-1] | word[4] | word[1:3] | word[::-1] | word[:-2] | word[99] | word[2:99:2] | list[0] | list[-1] | list[5] | list[::2] | list[:0]
list[-2:] | 'a,b,,c'.split(',') | 'a,b,c'.split(',', 1) | '  a b  c '.split() | 'a b c'.split(' ', maxsplit=1) | 'a b c'.rsplit(' ', 1) | ' a b '.split(None, 1)
'xxaxx'.strip('x') | '  a '.strip() | ' a '.lstrip() ~ '|' | ' a '.rstrip() ~ '|' | 'abcba'.rstrip('ab') | 'abc'.startswith('ab') | 'abc'.endswith(('x', 'c'))
'abc'.startswith('') | 'aXbX'.replace('X', 'yy') | 'aaa'.replace('a', 'b', 2) | 'hello World'.upper() | 'HELLO é'.lower() | 'hello wORLD'.title() | 'hello wORLD'.capitalize()
'abcabc'.find('c') | 'é漢c'.find('c') | 'abc'.find('x') | 'aaa'.count('a') | ','.join(names) | 'a\\nb\\r\\nc\\n'.splitlines() | 'a\\n\\nb'.splitlines(true)
'prefix-a'.removeprefix('prefix-') | 'a.txt'.removesuffix('.txt') | '12'.isdigit() | ''.isdigit() | ' \\t'.isspace() | list.index(1) | list.count(3)
dict.get('b') | dict.get('x') | dict.get('x', 5) | dict['items'] | dict.b | dict.a[1] | dict.items() | list | dict.keys() | list | dict.values() | list
dict | list | dict | length | list | length | word | length | missing | length | dict.items() | length | '漢字' | length
word | trim | ' x ' | trim ~ '|' | 'xxaxx' | trim('x') | missing | default('d') | nothing | default('d') | nothing | default('d', true) | empty | d('e', boolean=true)
word | lower | 'abc' | upper | 'hello big-world (x) <y' | title | 'hELLO' | capitalize | n | string | x | string ~ 'a' | [1, 2] | string | '12' | int | '12.7' | int
'x' | int | 'x' | int(5) | 3.9 | int | '1.5' | float | 'x' | float | yes | int | -3 | abs | names | join(',') | list | join | names | first | names | last | [] | first | 'abc' | last
list | sort | join | list | sort(reverse=true) | join | names | sort | join | names | sort(case_sensitive=true) | join | list | max | list | min | [] | max | list | sum
names | reverse | list | 'abc' | reverse | names | unique | list | dict | dictsort | names | map('upper') | list | messages | map(attribute='role') | join(' ')
messages | selectattr('role', 'equalto', 'user') | list | length | messages | rejectattr('tool_calls', 'defined') | map(attribute='role') | list | list | select('odd') | list
list | reject('gt', 1) | list | messages | selectattr('content') | list | length | messages | map(attribute='x', default='?') | join | tools | map(attribute='function.name') | list
messages | selectattr('role', 'in', ['tool', 'user']) | map(attribute='content') | list | tools[0].function | items | list | 'a\\nb\\n\\nc' | indent | 'a\\nb' | indent(2, true)
'a\\n\\nb' | indent(1, blank=true) | word | replace('ß', 'ss') | 'aaa' | replace('a', 'b', 2) | '<' | safe | names | length > 3 | 'a' | upper ~ 'b'
dict | tojson | dict | tojson(indent=2) | messages[2] | tojson | tools | tojson(sort_keys=true) | 'é\\x01"\\\\/\\u2028😀' | tojson | 'é😀' | tojson(ensure_ascii=true)
[1.0, 1e100, 1e-7, none, true] | tojson | [] | tojson(indent=4) | {} | tojson(indent=4) | [[], {}] | tojson(indent=1) | dict | tojson(separators=(',', ':')) | tojson is defined
dict | string | messages[1] | string | {'a': "it's", 'b': 'say "hi"', 'c': 'both \\' "', 'd': '\\n\\t\\\\\\x00é'} | (1,) | string | () | string | [none, true, 1.5]
range(3) | list | range(1, 10, 4) | list | range(3, 0, -1) | list | dict(a=1, b='c') | string | namespace(a=1).a | [1, [2, (3, {'k': 'v'})]] | {'a': 1, 'b': 2}.b
'\\x41\\u00e9\\n\\t\\'\\"\\\\\\q\\101' | "a\\
b" | messages[0]['content'] | messages[0].content.strip() | messages[-1].content.split('</think>')[-1].lstrip('\\n') | [1,2,3][1:] | -1 | - -1 | +n | not not n
messages[2].tool_calls[0].function.arguments | messages | length - 1 | (messages | length) - 1 | messages[messages | length - 1].role | [] or {} | 0 or '' or 'z'
"""

TEMPLATES = [
    "a\n{% if yes %}\nb\n{% endif %}\nc\n", "a {%- if yes -%}  b  {%- endif %} c", "  {% if yes %}x{% endif %}  \n  {{ n }}\n",
    "  {%+ if yes %}x{% endif +%}\n y", "{# comment #}\nx{#- y -#}  z {# a\nb #} w", "{{- n -}}  a {{ n }}\n\n", "x\n\n", "x\r\ny\r{{ n }}\r\n",
    "   {% set a = 1 %}   {{ a }}", "{% if n %}\n  a\n  {% else %}\n  b\n  {% endif %}\n", "{{ '{% x %}' }}{{ '}}' }}", "{{ {'a': {'b': 1}}.a.b }}",
    "{% for m in messages %}{{ loop.index }}/{{ loop.length }}:{{ m.role }}{% if not loop.last %}, {% endif %}{% endfor %}",
    "{% for x in list %}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.depth }}{{ loop.depth0 }} {% endfor %}",
    "{% for x in list %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }} {% endfor %}", "{% for x in [] %}a{% else %}none{% endfor %}",
    "{% for k, v in dict.items() %}{{ k }}={{ v }};{% endfor %}", "{% for k in dict %}{{ k }}{% endfor %}", "{% for c in 'é漢x' %}[{{ c }}]{% endfor %}",
    "{% for x in list if x > 1 %}{{ loop.index }}:{{ x }} {% endfor %}", "{% for x in missing %}a{% else %}e{% endfor %}",
    "{% for a, (b, c) in [(1, (2, 3)), (4, (5, 6))] %}{{ a }}{{ b }}{{ c }} {% endfor %}",
    "{% for x in list %}{% for y in list %}{{ loop.index }}{% endfor %}{{ loop.index }};{% endfor %}",
    "{% for x in range(9) %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 5 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "{% set a = 1 %}{% for x in list %}{{ a }}{% set a = x %}{{ a }} {% endfor %}{{ a }}", "{% if yes %}{% set a = 5 %}{% endif %}{{ a }}",
    "{% set ns = namespace(found=false, n=0) %}{% for x in list %}{% set ns.n = ns.n + x %}{% if x == 1 %}{% set ns.found = true %}{% endif %}{% endfor %}{{ ns.found }}{{ ns.n }}",
    "{% set a, b = 1, 'two' %}{{ b }}{{ a }}", "{% set t = 1, 2 %}{{ t }}", "{% set text %}a{{ n }}\n  b{% endset %}[{{ text | upper }}]",
    "{% set a = 1 %}{% set text %}{% set a = 2 %}{{ a }}{% endset %}{{ text }}{{ a }}",
    "{% if n > 10 %}a{% elif n > 5 %}b{% elif n > 3 %}c{% else %}d{% endif %}", "{% if empty %}a{% elif nothing %}b{% else %}c{% endif %}",
    "{% macro hi(name, mark='!', *, x=1) %}{% endmacro %}", "{% macro hi(name, mark='!') %}Hi {{ name }}{{ mark }}{% endmacro %}{{ hi('you') }}{{ hi(name='me', mark='?') }}{{ hi('a', '.') }}{{ hi() }}",
    "{% macro fact(k) %}{% if k < 2 %}1{% else %}{{ k * (fact(k - 1) | int) }}{% endif %}{% endmacro %}{{ fact(6) }}",
    "{% set top = 'T' %}{% macro m() %}{{ top }}{{ n }}{% endmacro %}{% for top in list %}{{ m() }}{% endfor %}",
    "{% macro m(x) %}{% set y = x * 2 %}{{ y }}{% endmacro %}{{ m(2) }}{{ y }}", "{% macro late() %}{{ after }}{% endmacro %}{% set after = 3 %}{{ late() }}",
    "{% generation %}{{ n }}{% set hidden = 1 %}{% endgeneration %}{{ hidden }}", "{{ messages | map(attribute='content') | select('string') | map('trim') | join('|') }}",
    "{%- for m in messages %}\n    {%- if m.role == 'user' or m.role == 'assistant' and not m.tool_calls %}\n        {{- '<' + m.role + '>' + m.content }}\n    {%- elif m.tool_calls %}\n"
    "        {%- for call in m.tool_calls %}\n            {%- if call.function is defined %}\n                {%- set call = call.function %}\n            {%- endif %}\n"
    "            {{- call.name ~ call.arguments | tojson }}\n        {%- endfor %}\n    {%- endif %}\n{%- endfor %}",
    "{{ raise_exception('no: ' ~ n) }}", "{{ missing.x }}", "{{ missing + 'a' }}", "{{ 'a' + 1 }}", "{{ 1 / 0 }}", "{{ n() }}", "{{ missing() }}", "{{ [1] < 2 }}", "{{ none | length }}",
    "{{ list | map('upper') | length }}", "{{ none + 'a' }}", "{{ 'a'.split('') }}", "{{ {[1]: 2} }}", "{% for x in 5 %}{% endfor %}", "{% for a, b in list %}{% endfor %}", "{{ missing | tojson }}",
    "{{ list.append(1) }}", "{{ dict.update({}) }}", "{{ 'a' in 5 }}", "{{ 5 in 'a5' }}", "{{ 'x' | default }}{{ hi }}", "{% set n.a = 1 %}",
    "{% if yes %}", "{% endif %}", "{{ n", "{{ }}", "{% for %}{% endfor %}", "{{ 'a }}", "{# x", "{{ (n }}", "{{ n) }}", "{% foo %}", "{{ 1 + }}", "{{ n n }}", "{% break %}", "{{ a.'b' }}", "{{ $ }}", "{{ 03 }}", "{{ missing is sequence }}{{ missing is callable }}", "{{ ('a' | safe) + 'b' }}{{ ('<' | safe) ~ 1 ~ '<' }}{{ dict | tojson | safe }}", "{{ 00 }}", "{{ 01.5 }}", "{{ n is defined is true }}", "{{ 3 * 'ab' }}{{ 2 * [1] }}", "{{ 2 * none }}", "{% set 1 = 2 %}",
]
# What Jinja2 does and this evaluator refuses by name.
REFUSED = {
    "{% raw %}{{ x }}{% endraw %}": "raw", "{% include 'a' %}": "include", "{% block a %}{% endblock %}": "block", "{% with a = 1 %}{{ a }}{% endwith %}": "with",
    "{% filter upper %}a{% endfilter %}": "filter", "{{ list | batch(2) | list }}": "batch", "{{ 'a' | escape }}": "escape", "{{ 'a'.zfill(3) }}": "zfill",
    "{{ 'a %s' % 1 }}": "formatting", "{{ 'a'.format(1) }}": "format", "{{ n is filter }}": "filter", "{{ lipsum() }}": "lipsum", "{{ cycler(1, 2) }}": "cycler",
    "{% for x in list %}{{ loop.cycle('a', 'b') }}{% endfor %}": "cycle", "{% for x in list recursive %}{% endfor %}": "recursive", "{{ range(*list) }}": "*args",
    "{{ 99999999999999999999 }}": "number", "{{ 9223372036854775807 + 1 }}": "64 bits", "{{ 'ß' | upper }}": "U+00DF", "{{ names | groupby('x') }}": "groupby",
    "{{ ('a' | safe) + '<' }}": "safe", "{{ ['a' | safe] }}": "safe", "{{ ('a' | safe).upper() }}": "safe",
    "{{ n is sameas n }}": "sameas", "{{ dict.items() }}": "no text", "{% set a = list | map('string') %}{{ a | join }}{{ a | join }}": "second time", "{{ n.real }}": "real", "{{ n.__class__ }}": "__", "{% set x | upper %}a{% endset %}": "block set",
    "{% macro m() %}{{ varargs }}{% endmacro %}{{ m(1) }}": "argument", "{{ range(1000000) | length }}": "range", "{{ ('a' * 100000) * 100000 }}": "memory",
    "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}": "memory",
    "{% set s = 'a' * 1000000 %}{% for a in range(9999) %}{% if 'b' in s %}{% endif %}{% endfor %}": "steps", "{{ range(3) }}": "no text", "{{ " + "(" * 300 + ")" * 300 + " }}": "nested",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "nested", "{{ 'a' | tojson(indent=1, allow_nan=2) }}": "argument",
}


def expressions():
    """The expressions between bars; a filter's bar has a space and a letter behind it, so cut where both sides parse."""
    for line in EXPRESSIONS.strip().replace("\\\n", "\\\x00").split("\n"):
        line = line.replace("\\\x00", "\\\n").replace("\\\\", "\\")
        parts = line.split(" | ")
        for count in range(1, 5):
            for at in range(len(parts) - count + 1):
                yield " | ".join(parts[at:at + count])


def render(template):
    try:
        return ENV.from_string(template).render(**VARS)
    except Exception:  # whatever it is: the template fails
        return None


def main(output):
    cases, seen = [], set()
    for template in ["{{ %s }}" % e for e in expressions()] + TEMPLATES:
        if template in seen:
            continue
        seen.add(template)
        text = render(template)
        if text is not None and (" at 0x" in text or text.startswith(("dict_", "range(")) or "sameas n" in template):
            continue
        cases.append({"template": template} | ({} if text is None else {"text": text}))
    for template, words in REFUSED.items():
        cases.append({"template": template, "refused": words})
    with open(output, "w", encoding="utf-8") as file:
        json.dump({"vars": VARS}, file, ensure_ascii=True)
        for case in cases:
            file.write("\n" + json.dumps(case, ensure_ascii=True))
        file.write("\n")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "data" / "jinja.jsonl")
