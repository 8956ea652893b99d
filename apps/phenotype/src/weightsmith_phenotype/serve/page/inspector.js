// The panel of one mention: its term, the term's place in the ontology, and what the reader can change.

import { combobox } from "./combobox.js";
import { count, el, fetchJson, fill } from "./dom.js";
import { FLAGS } from "./note.js";
import { visible } from "./text.js";

const MEANING = {
  negated: "The person does not have it",
  uncertain: "It may be so",
  family: "It is said of a relative",
};
const SHOWN = 12; // synonyms or children before the rest is folded

export class Inspector {
  // host: mentions(), text(), change(key, patch), remove(key), add(range, term), open(key), close()
  constructor(section, host) {
    this.section = section;
    this.host = host;
    this.key = null;
    this.known = new Map();
    this.asked = 0;
  }

  get open() {
    return !this.section.hidden;
  }

  hide() {
    this.section.hidden = true;
    this.section.replaceChildren();
    this.key = null;
  }

  // Show a mention.
  show(key) {
    const mentions = this.host.mentions();
    const place = mentions.findIndex((mention) => mention.key === key);
    const mention = mentions[place];
    this.key = key;
    const step = (to, label, sign) =>
      el("button", { type: "button", class: "plain square", "aria-label": label, disabled: !mentions[to],
        onclick: () => this.host.open(mentions[to].key) }, sign);
    const search = combobox({
      label: "Change the term",
      choose: (hit) => this.host.change(key, { concept_id: hit.id, name: hit.name, source: "reader", score: 1 }, true),
    });
    this.term = el("div", { class: "term" });
    this.section.replaceChildren(
      this.#head(
        el("span", { class: "steps" }, step(place - 1, "Previous mention", "‹"), `${place + 1} of ${mentions.length}`,
          step(place + 1, "Next mention", "›")),
        el("button", { type: "button", class: "plain danger", "aria-label": "Remove this mention",
          onclick: () => this.host.remove(key) }, "Remove"),
      ),
      el("p", { class: "quote" }, "“", el("bdi", {}, visible(mention.text)), "”"),
      el("h2", { id: "inspector-title", tabindex: -1 }, mention.name),
      el("p", { class: "facts" }, el("span", { class: "id" }, mention.concept_id),
        ` · score ${mention.score.toFixed(2)} · ${mention.source}`),
      el("div", { class: "flags", role: "group", "aria-label": "Context" }, FLAGS.map((flag) => this.#flag(mention, flag))),
      search.box,
      this.term,
    );
    this.#reveal();
    this.browse(mention.concept_id);
  }

  // The mention's context is another now; the focus stays where it is.
  refresh(mention) {
    if (mention.key !== this.key) return;
    for (const button of this.section.querySelectorAll("[data-flag]")) {
      button.setAttribute("aria-pressed", String(mention[button.dataset.flag]));
    }
  }

  // Show the form of a new mention, of a selected range or of words to look for.
  showNew(range) {
    this.key = null;
    const text = this.host.text();
    let chosen = range;
    const search = combobox({
      label: "Term",
      choose: (hit) => (chosen ? this.host.add(chosen, hit) : words.focus()),
    });
    const where = el("p", { class: "quiet", role: "status" });
    const places = el("select", { "aria-label": "Place in the note", hidden: true,
      onchange: () => { chosen = found[places.selectedIndex]; } });
    let found = [];
    const look = () => {
      found = occurrences(text, words.value.trim());
      chosen = found[0] ?? null;
      places.replaceChildren(...found.map((place) => el("option", {}, visible(context(text, place)))));
      places.hidden = found.length < 2;
      where.textContent = words.value.trim() === "" ? "" : found.length === 0 ? "These words are not in the note." : found.length === 1 ? context(text, found[0]) : `In ${found.length} places:`;
      if (chosen) search.input.value = words.value.trim();
    };
    const words = el("input", { id: "words", type: "text", spellcheck: "false", maxlength: 200, oninput: look,
      onkeydown: (event) => { if (event.key === "Enter" && chosen) { search.input.focus(); search.search(); } } });
    this.section.replaceChildren(
      this.#head(el("span", { class: "steps" })),
      el("h2", { id: "inspector-title", tabindex: -1 }, "Add a term"),
      ...(range
        ? [el("p", { class: "quote" }, "“", el("bdi", {}, visible(text.slice(range.start, range.end))), "”")]
        : [el("label", { class: "field", for: "words" }, "Words in the note"), words, where, places]),
      search.box,
    );
    this.#reveal();
    if (range) {
      search.input.value = text.slice(range.start, range.end).replace(/\s+/g, " ").slice(0, 200);
      search.input.focus();
      search.search();
    } else words.focus();
  }

  // Show a term in the lower part; the mention keeps its own until the reader takes this one.
  async browse(identifier) {
    const asked = ++this.asked;
    const own = this.host.mentions().find((mention) => mention.key === this.key);
    let term;
    try {
      term = this.known.get(identifier) ?? (await fetchJson(`/api/terms/${encodeURIComponent(identifier)}`));
      this.known.set(identifier, term);
    } catch (error) {
      if (asked === this.asked) this.term.replaceChildren(el("p", { class: "alert", role: "alert" }, error.message));
      return;
    }
    if (asked !== this.asked || !own) return;
    const elsewhere = term.id !== own.concept_id;
    const title = el("h3", { tabindex: -1 }, elsewhere ? [term.name, " ", el("span", { class: "id" }, term.id)] : "Definition");
    fill(
      this.term,
      title,
      elsewhere
        ? el("div", { class: "take" },
            el("button", { type: "button", class: "primary", disabled: !term.concept,
              onclick: () => this.host.change(this.key, { concept_id: term.id, name: term.name, source: "reader", score: 1 }, true) },
              "Use this term"),
            el("button", { type: "button", class: "plain", onclick: () => this.#visit(own.concept_id) }, `Back to ${own.name}`))
        : null,
      el("p", { class: "definition" }, term.definition || "The ontology has no definition of this term."),
      this.#synonyms(term),
      this.#relatives("Parents", "up", term.parents),
      this.#relatives("Children", "down", term.children),
    );
    if (this.visiting) title.focus();
    this.visiting = false;
  }

  #visit(identifier) {
    this.visiting = true;
    return this.browse(identifier);
  }

  #head(...left) {
    return el("div", { class: "inspector-head" }, left,
      el("button", { type: "button", class: "plain", "aria-keyshortcuts": "Escape", onclick: () => this.host.close() }, "Close"));
  }

  #flag(mention, flag) {
    return el("button", {
      type: "button", class: `flag ${flag}`, "aria-pressed": String(mention[flag]), title: MEANING[flag],
      "data-flag": flag,
      onclick: (event) => this.host.change(mention.key, { [flag]: event.currentTarget.getAttribute("aria-pressed") !== "true" }),
    }, flag);
  }

  #synonyms({ synonyms, name }) {
    const texts = [...new Set(synonyms.map((synonym) => synonym.text))].filter((text) => text !== name);
    if (texts.length === 0) return [];
    const items = texts.map((text) => el("li", {}, text));
    return [el("h3", {}, "Synonyms"), el("ul", { class: "synonyms" }, items.slice(0, SHOWN)),
      this.#rest(items, "synonyms")];
  }

  #relatives(title, way, relatives) {
    if (relatives.length === 0) return [];
    const items = relatives.map((relative) =>
      el("li", {}, el("button", { type: "button", class: "relative", onclick: () => this.#visit(relative.id) },
        el("span", {}, relative.name), " ", el("span", { class: "id" }, relative.id))));
    return [el("h3", {}, title), el("ul", { class: `relatives ${way}` }, items.slice(0, SHOWN)),
      this.#rest(items, `relatives ${way}`)];
  }

  #rest(items, kind) {
    const rest = items.slice(SHOWN);
    return rest.length
      ? el("details", {}, el("summary", {}, `${count(rest.length, "more", "more")}`), el("ul", { class: kind }, rest))
      : null;
  }

  #reveal() {
    this.section.hidden = false;
    this.section.scrollTop = 0;
    this.section.querySelector("#inspector-title").focus({ preventScroll: true });
  }
}

// Where words stand in a text, whatever their case, in UTF-16 units.
function occurrences(text, words, most = 50) {
  if (words === "") return [];
  const pattern = words.split(/\s+/).map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("\\s+");
  const found = [];
  for (const match of text.matchAll(new RegExp(pattern, "giu"))) {
    found.push({ start: match.index, end: match.index + match[0].length });
    if (found.length === most) break;
  }
  return found;
}

function context(text, { start, end }, around = 24) {
  const before = text.slice(Math.max(0, start - around), start), after = text.slice(end, end + around);
  return `… ${before}${text.slice(start, end)}${after} …`.replace(/\s+/g, " ");
}
