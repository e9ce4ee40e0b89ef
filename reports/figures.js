"use strict";
// Draws the figures of a page without a command timeline, in the colours of the theme.
(() => {
  const figures = JSON.parse(document.getElementById("page-data").textContent);
  const draw = () => {
    const style = getComputedStyle(document.documentElement);
    const text = style.getPropertyValue("--text"), grid = style.getPropertyValue("--grid");
    const axis = (a) => ({ ...a, color: text, gridcolor: grid, zerolinecolor: grid });
    for (const [name, figure] of Object.entries(figures)) {
      const box = document.getElementById(name);
      const layout = { ...figure.layout, font: { ...figure.layout.font, color: text }, width: box.clientWidth };
      layout.xaxis = axis(layout.xaxis);
      layout.yaxis = axis(layout.yaxis);
      Plotly.react(box, figure.data, layout, { displaylogo: false, displayModeBar: false });
    }
    document.documentElement.dataset.ready = "yes";
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  let timer;
  addEventListener("resize", () => { clearTimeout(timer); timer = setTimeout(draw, 150); });
  draw();
})();
