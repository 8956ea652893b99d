(() => {
  const figures = [...document.querySelectorAll("figure.panel")].map((element) => ({
    plot: element.querySelector(".plot"),
    group: element.closest(".layers"),
    spec: JSON.parse(element.querySelector("script").textContent),
  }));
  const hidden = new Map();
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const draw = ({ plot, group, spec }) => {
    const off = hidden.get(group) ?? new Set();
    const data = spec.data.map((trace) => ({
      ...trace,
      line: { width: 2, color: colour(`--c${trace.meta}`) },
      marker: { size: 5, color: colour(`--c${trace.meta}`) },
      visible: !off.has(trace.name),
    }));
    const axis = { gridcolor: colour("--line"), linecolor: colour("--line"), zeroline: false, automargin: true };
    const layout = {
      margin: { l: 48, r: 8, t: 6, b: 38 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      showlegend: false,
      font: { family: colour("--sans"), size: 12, color: colour("--soft") },
      hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
      xaxis: { ...axis, showgrid: false, ...spec.layout.xaxis },
      yaxis: { ...axis, ...spec.layout.yaxis },
    };
    Plotly.react(plot, data, layout, { displayModeBar: false, responsive: true });
  };
  const drawAll = () => figures.forEach(draw);

  document.querySelectorAll(".legend button").forEach((button) =>
    button.addEventListener("click", () => {
      const group = button.closest(".layers");
      const off = hidden.get(group) ?? new Set();
      off.has(button.dataset.kind) ? off.delete(button.dataset.kind) : off.add(button.dataset.kind);
      hidden.set(group, off);
      button.classList.toggle("off", off.has(button.dataset.kind));
      figures.filter((figure) => figure.group === group).forEach(draw);
    })
  );
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  addEventListener("beforeprint", () => { document.documentElement.classList.add("print"); drawAll(); });
  addEventListener("afterprint", () => { document.documentElement.classList.remove("print"); drawAll(); });
  drawAll();
})();
