"use strict";
// Reads values off a chart: the pointer, or the arrow keys once the chart has the focus.
for (const figure of document.querySelectorAll("figure")) {
  const svg = figure.querySelector("svg");
  const data = figure.querySelector("script");
  if (!svg || !data) continue;
  const points = JSON.parse(data.textContent);
  const cursor = svg.querySelector(".cursor");
  const output = figure.querySelector("output");
  const last = points.x.length - 1;
  let at = -1;

  function show(index) {
    at = Math.min(Math.max(index, 0), last);
    const x = points.x[at];
    cursor.setAttribute("transform", `translate(${x},0)`);
    cursor.setAttribute("visibility", "visible");
    const time = new Date(points.time[at]).toISOString().replace("T", " ").replace("Z", " UTC");
    const range = `${points.low[at]} to ${points.high[at]}`;
    output.textContent = `${time}: value ${points.value[at]}, expected ${points.expected[at]} (${range}), score ${points.score[at]}`;
  }

  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    let low = 0;
    let high = last;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (points.x[middle] < x) low = middle + 1;
      else high = middle;
    }
    show(low > 0 && x - points.x[low - 1] < points.x[low] - x ? low - 1 : low);
  });
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -25, PageDown: 25 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    show(at < 0 ? (step > 0 ? 0 : last) : at + step);
  });
}
