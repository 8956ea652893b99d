document.querySelectorAll(".legend button").forEach((button) =>
  button.addEventListener("click", () => {
    const off = button.classList.toggle("off");
    button.closest(".layers").querySelectorAll("g.line").forEach((line) => {
      if (line.dataset.kind === button.dataset.kind) line.classList.toggle("off", off);
    });
  })
);
