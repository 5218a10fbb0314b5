"use strict";
// Draws the charts from the numbers in the page, for the choices in the form.
const data = JSON.parse(document.getElementById("data").textContent);
const form = document.getElementById("choices");
const units = {step: "step", words: "words seen", tokens: "tokens seen", hours: "hours of training"};
let turn = 0;

// Exponential moving average, started without bias; values that are not finite stay as they are.
function smoothed(values, factor) {
  let sum = 0, weight = 0;
  return values.map(value => {
    if (value === null) return null;
    sum = factor * sum + (1 - factor) * value;
    weight = factor * weight + 1 - factor;
    return sum / weight;
  });
}

function rowsOf(chart, chosen) {
  const rows = [];
  for (const curve of chart.curves) {
    const run = data.runs[curve.run], group = data.groups[run.group], axis = data.axes[curve.axis];
    const selected = chosen.groups.has(String(run.group));
    if (!axis[chosen.x] || (!selected && !chosen.others) || (chosen.seeds && !chosen.seeds.has(run.seed))) continue;
    const y = smoothed(curve.y, chosen.smoothing);
    const line = chosen.average ? `${group.code} ${group.name}` : `${group.code} ${run.name}`;
    const lastKnown = y.findLastIndex(value => value !== null);
    y.forEach((value, i) => {
      const x = axis[chosen.x][i];
      if (x === null || x < chosen.from || x > chosen.to || (chosen.logX && x <= 0) || (chosen.logY && value <= 0)) return;
      rows.push({
        line, code: group.code, name: group.name, x, y: value,
        look: selected ? group.look : -1, dash: group.dash,
        bin: Math.min(Math.floor(axis.step[i] * data.bins / Math.max(data.last_step, 1)), data.bins - 1),
        low: chosen.smoothing || !curve.low ? value : curve.low[i],
        high: chosen.smoothing || !curve.high ? value : curve.high[i],
        cross: i === lastKnown && lastKnown < y.length - 1,
      });
    });
  }
  return rows;
}

function specification(chart, chosen, description) {
  const made = structuredClone(data.template);
  const above = chosen.references ? chart.references.filter(line => !chosen.logY || line.y > 0) : [];
  made.datasets = {curves: rowsOf(chart, chosen), references: above};
  made.description = description;
  for (const {encoding} of made.layer) {
    if (encoding.x && encoding.x.scale) {
      if (chosen.logX) encoding.x.scale = {type: "log", nice: false};
      encoding.x.axis.title = units[chosen.x];
    }
    if (encoding.y && encoding.y.scale) {
      if (chosen.logY) encoding.y.scale = {type: "log", nice: false};
      else if (chosen.cut && chart.domain) encoding.y.scale.domain = chart.domain;
    }
    for (const tip of encoding.tooltip || []) if (tip.field === "x") tip.title = units[chosen.x];
  }
  return made;
}

function choices() {
  const read = new FormData(form), seeds = form.querySelectorAll("[name=seed]");
  const number = (name, otherwise) => read.get(name) ? Number(read.get(name)) : otherwise;
  return {
    x: read.get("x"), from: number("from", -Infinity), to: number("to", Infinity), smoothing: number("smoothing", 0),
    groups: new Set(read.getAll("group")), seeds: seeds.length ? new Set(read.getAll("seed")) : null,
    ...Object.fromEntries(["logX", "logY", "references", "cut", "others"].map(name => [name, read.has(name)])),
    average: !form.elements.average || read.has("average"),
  };
}

// Draws all charts one after the other; a newer call ends an older one. Level 1 logs errors only.
async function draw() {
  const mine = ++turn, chosen = choices();
  document.getElementById("factor").textContent = chosen.smoothing;
  for (const place of document.querySelectorAll(".chart")) {
    if (mine !== turn) return;
    const made = specification(data.charts[place.dataset.chart], chosen, place.dataset.description);
    await vegaEmbed(place, made, {renderer: "svg", actions: false, logLevel: 1});
    await new Promise(done => setTimeout(done));
  }
  document.body.dataset.drawn = mine;
}

if (form) {
  form.addEventListener("change", draw);
  form.addEventListener("submit", event => event.preventDefault());
  const filter = document.getElementById("filter"), labels = [...form.querySelectorAll(".group")];
  const find = () => labels.forEach(label => {
    label.hidden = filter !== null && !label.textContent.toLowerCase().includes(filter.value.toLowerCase());
  });
  filter?.addEventListener("input", find);
  filter?.addEventListener("change", event => event.stopPropagation());
  form.addEventListener("reset", () => setTimeout(() => { find(); draw(); }));
  for (const button of form.querySelectorAll("button")) button.addEventListener("click", () => {
    for (const label of labels) if (!label.hidden) label.querySelector("input").checked = button.value !== "";
    draw();
  });
  draw();
}
