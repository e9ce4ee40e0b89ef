"use strict";
// Draws the figures of a sweep in the colours of the theme; a click on a point shows it and how to open it.
(() => {
  const data = JSON.parse(document.getElementById("page-data").textContent);
  const place = new Map(data.keys.map((key, i) => [key, i]));
  const by = (id) => document.getElementById(id);

  const draw = () => {
    const style = getComputedStyle(document.documentElement);
    const text = style.getPropertyValue("--text"), grid = style.getPropertyValue("--grid");
    for (const [name, figure] of Object.entries(data.figures)) {
      const layout = { ...figure.layout, font: { ...figure.layout.font, color: text } };
      for (const axis of ["xaxis", "yaxis"]) layout[axis] = { ...layout[axis], color: text, gridcolor: grid, zerolinecolor: grid };
      if (layout.annotations) {
        const page = style.getPropertyValue("--page");
        layout.annotations = layout.annotations.map((a) => ({ ...a, font: { ...a.font, color: text }, bgcolor: page, opacity: 0.85 }));
      }
      Plotly.react(by(name), figure.data, layout, { responsive: true, displaylogo: false, displayModeBar: false });
    }
  };

  const shown = (name, value) => {
    const known = data.shown[name] && data.shown[name][String(value)];
    if (known !== undefined) return known;
    return typeof value === "number" ? value.toLocaleString("en-US", { maximumSignificantDigits: 7 }) : String(value);
  };

  const choose = (key) => {
    const i = place.get(key);
    if (i === undefined) return;
    const facts = document.createElement("dl");
    facts.className = "facts";
    for (const [name, column] of Object.entries(data.columns)) {
      const term = document.createElement("dt"), value = document.createElement("dd");
      term.textContent = name;
      value.textContent = shown(name, column[i]);
      facts.append(term, value);
    }
    by("chosen-facts").replaceChildren(facts);
    by("chosen-command").textContent = data.command + key;
    by("chosen-tools").hidden = false;
    const report = by("chosen-report");
    report.hidden = !(key in data.reports);
    if (key in data.reports) report.href = data.reports[key];
    for (const row of document.querySelectorAll("tr.chosen")) row.classList.remove("chosen");
    const button = document.querySelector(`button.point[data-key="${CSS.escape(key)}"]`);
    if (button) button.closest("tr").classList.add("chosen");
    location.hash = key;
  };

  for (const name of Object.keys(data.figures)) {
    Plotly.newPlot(by(name), [], {}).then((box) => box.on("plotly_click", (event) => {
      const key = event.points[0] && event.points[0].customdata;
      if (typeof key === "string") choose(key);
    }));
  }
  for (const button of document.querySelectorAll("button.point")) {
    button.addEventListener("click", () => { choose(button.dataset.key); by("chosen").scrollIntoView({ block: "nearest" }); });
  }
  by("chosen-copy").addEventListener("click", () => navigator.clipboard.writeText(by("chosen-command").textContent));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
  if (location.hash) choose(location.hash.slice(1));
  document.documentElement.dataset.ready = "yes";
})();
