// A text field that searches the ontology's terms: the ARIA pattern of a combobox with a list.

import { el, fetchJson } from "./dom.js";

const WAIT = 120; // milliseconds after the last key
let made = 0;

const WHY = {
  id: () => "",
  name: () => "",
  synonym: (hit) => hit.match,
  replaced: (hit) => `${hit.match} became this term`,
  consider: (hit) => `${hit.match} is obsolete; consider this term`,
};

export function combobox({ label, value = "", choose }) {
  const id = `terms-${++made}`;
  const list = el("ul", { id: `${id}-list`, role: "listbox", "aria-label": "Terms that fit", hidden: true,
    onmousedown: (event) => event.preventDefault() }); // the field keeps the focus
  const input = el("input", {
    id, type: "text", role: "combobox", "aria-expanded": "false", "aria-controls": list.id, "aria-autocomplete": "list",
    autocomplete: "off", spellcheck: "false", maxlength: 200, placeholder: "Name, synonym or id", value,
  });
  const said = el("p", { class: "quiet said", role: "status" });
  const box = el("div", { class: "combobox" }, el("label", { class: "field", for: id }, label), input, list, said);
  let hits = [], active = -1, timer = 0, running = null;

  function close() {
    clearTimeout(timer);
    running?.abort();
    list.hidden = true;
    active = -1;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  }

  function mark(position) {
    active = position;
    [...list.children].forEach((option, number) => option.setAttribute("aria-selected", String(number === active)));
    const option = list.children[active];
    if (option) {
      input.setAttribute("aria-activedescendant", option.id);
      option.scrollIntoView({ block: "nearest" });
    } else input.removeAttribute("aria-activedescendant");
  }

  function take(position) {
    const hit = hits[position];
    if (!hit) return;
    close();
    said.textContent = "";
    choose(hit);
  }

  function show(found) {
    hits = found.terms;
    list.replaceChildren(
      ...hits.map((hit, number) => {
        const why = WHY[hit.kind](hit);
        return el(
          "li",
          {
            id: `${id}-${number}`, role: "option", "aria-selected": "false",
            onclick: () => take(number),
            onpointermove: () => active !== number && mark(number),
          },
          el("span", { class: "option-name" }, hit.name), " ",
          el("span", { class: "id" }, hit.id),
          why ? el("span", { class: "option-why" }, ` ${why}`) : null,
        );
      }),
    );
    list.hidden = hits.length === 0;
    input.setAttribute("aria-expanded", String(hits.length > 0));
    mark(hits.length ? 0 : -1);
    if (!hits.length) said.textContent = input.value.trim() ? "No term fits." : "";
    else if (found.total > hits.length) said.textContent = `The best ${hits.length} of ${found.total.toLocaleString("en")} terms; more words give fewer.`;
    else said.textContent = `${hits.length === 1 ? "One term fits" : `${hits.length} terms fit`}.`;
  }

  async function search() {
    running?.abort();
    running = new AbortController();
    try {
      show(await fetchJson(`/api/terms?query=${encodeURIComponent(input.value)}`, { signal: running.signal }));
    } catch (error) {
      if (error.name !== "AbortError") said.textContent = error.message;
    }
  }

  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(search, WAIT);
  });
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    const open = !list.hidden;
    if (event.key === "ArrowDown" && !open) search();
    else if (event.key === "ArrowDown") mark((active + 1) % hits.length);
    else if (event.key === "ArrowUp" && open) mark((active - 1 + hits.length) % hits.length);
    else if (event.key === "PageDown" && open) mark(hits.length - 1);
    else if (event.key === "PageUp" && open) mark(0);
    else if (event.key === "Enter" && open) take(active);
    else if (event.key === "Escape" && open) close();
    else {
      if (event.key === "Enter") event.preventDefault();
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  });

  return { box, input, search };
}
