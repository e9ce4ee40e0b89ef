"use strict";
// Draws the one figure of the zoo page in the colours of the theme.
(() => {
  const figure = JSON.parse(document.getElementById("page-data").textContent);
  const box = document.getElementById("zoo-plot");
  const draw = () => {
    const style = getComputedStyle(document.documentElement);
    const text = style.getPropertyValue("--text"), grid = style.getPropertyValue("--grid");
    const axis = (a) => ({ ...a, color: text, gridcolor: grid, zerolinecolor: grid });
    const layout = { ...figure.layout, font: { ...figure.layout.font, color: text } };
    layout.xaxis = axis(layout.xaxis);
    layout.yaxis = axis(layout.yaxis);
    Plotly.react(box, figure.data, layout, { responsive: true, displaylogo: false, displayModeBar: false });
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
})();
