"use strict";
// Values under the pointer, or at the place that the arrow keys choose.
for (const chart of document.querySelectorAll(".chart")) {
  const data = JSON.parse(chart.querySelector("script").textContent);
  const plot = chart.querySelector(".plot"), line = plot.querySelector(".line"), tip = plot.querySelector(".tip");
  const steps = [...new Set(data.series.flatMap(s => s.x))].sort((a, b) => a - b);
  let chosen = 0;
  const nearest = (list, x) => list.reduce((best, v, i) => Math.abs(v - x) < Math.abs(list[best] - x) ? i : best, 0);
  const hide = () => { line.hidden = tip.hidden = true; };
  const show = index => {
    chosen = Math.max(0, Math.min(steps.length - 1, index));
    const x = steps[chosen], at = 100 * (x - data.low) / (data.high - data.low);
    tip.replaceChildren();
    const put = text => { tip.append(Object.assign(document.createElement("div"), { textContent: text })); };
    put(data.x + " " + x);
    for (const s of data.series) {
      const i = s.x.indexOf(x);
      if (i >= 0)
        put(s.name + " " + (s.y[i] === null ? "not a number" : s.y[i]));
    }
    line.hidden = tip.hidden = false;
    line.style.left = at + "%";
    const room = plot.clientWidth, left = at / 100 * room, width = tip.offsetWidth;
    tip.style.left = Math.max(-50, left + 12 + width > room ? left - 12 - width : left + 12) + "px";
  };
  const follow = event => {
    const box = plot.getBoundingClientRect();
    show(nearest(steps, data.low + (event.clientX - box.left) / box.width * (data.high - data.low)));
  };
  plot.addEventListener("pointermove", follow);
  plot.addEventListener("pointerdown", follow);
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("focus", () => { if (plot.matches(":focus-visible")) show(chosen); });
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", event => {
    const by = { ArrowLeft: -1, ArrowRight: 1, Home: -steps.length, End: steps.length }[event.key];
    if (by === undefined)
      return;
    event.preventDefault();
    show(chosen + by);
  });
}
