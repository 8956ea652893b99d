// Genes and diseases that the person's terms point to.

import { byId, count, el, fetchJson } from "./dom.js";
import { status } from "./note.js";

const FIRST = 10; // rows before the rest is folded
const WAIT = 1000; // milliseconds between looks at a server that still reads its annotations
const SUPERSCRIPT = "⁰¹²³⁴⁵⁶⁷⁸⁹";

export class Ranking {
  constructor(mentions) {
    this.mentions = mentions;
    this.shown = false;
    this.ready = false;
    this.asked = 0;
    this.timer = 0;
    byId("rank").addEventListener("click", () => this.rank());
    byId("with-uncertain").addEventListener("change", () => this.changed());
  }

  reset() {
    this.shown = false;
    this.asked++;
    clearTimeout(this.timer);
    byId("ranking").replaceChildren();
    byId("ranking").removeAttribute("aria-busy");
  }

  // The mentions are others now: what is shown follows.
  changed() {
    if (!this.shown) return;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.rank(), 300);
  }

  async rank() {
    const asked = ++this.asked;
    clearTimeout(this.timer);
    this.shown = true;
    const terms = new Map(), excluded = new Map(); // id to name
    for (const mention of this.mentions()) {
      const kind = status(mention);
      if (kind === "present" || (kind === "uncertain" && byId("with-uncertain").checked)) terms.set(mention.concept_id, mention.name);
      else if (kind === "negated") excluded.set(mention.concept_id, mention.name);
    }
    for (const id of terms.keys()) excluded.delete(id); // said once that it is there, and once that it is not
    if (terms.size === 0) {
      byId("ranking").replaceChildren();
      this.#say("No term is left to rank by: the note has none that is present.");
      return;
    }
    byId("ranking").setAttribute("aria-busy", "true");
    try {
      if (!this.ready) {
        const state = (await fetchJson("/api/status")).insight;
        if (asked !== this.asked) return;
        if (state === "loading") {
          this.#say("The annotations of genes and diseases are being read; the ranking follows by itself.");
          this.timer = setTimeout(() => this.rank(), WAIT);
          return;
        }
        this.ready = true;
      }
      const found = await fetchJson("/api/insight", { json: { terms: [...terms.keys()], excluded: [...excluded.keys()] } });
      if (asked === this.asked) this.#show(found, new Map([...terms, ...excluded]));
    } catch (error) {
      if (asked !== this.asked) return;
      this.#say(error.message);
    }
    if (asked === this.asked) byId("ranking").removeAttribute("aria-busy");
  }

  #say(text) {
    byId("insight-status").textContent = text;
  }

  #show(found, names) {
    for (const { id, name } of [...found.used, ...found.implied]) names.set(id, name);
    const left = found.implied.length ? ` Left out, implied by a more specific term: ${found.implied.map((term) => term.name).join(", ")}.` : "";
    const unknown = found.unknown.length ? ` Not in the annotations: ${found.unknown.join(", ")}.` : "";
    this.#say(`Ranked by ${count(found.used.length, "term")}, ${found.source}.${left}${unknown}`);
    byId("ranking").replaceChildren(
      table("Genes", found.genes, found.used, names),
      table("Diseases", found.diseases, found.used, names),
    );
  }
}

function table(title, rows, used, names) {
  if (rows.length === 0) return el("div", {}, el("h3", {}, title), el("p", { class: "quiet" }, "None is annotated with these terms."));
  const more = el("button", { type: "button", class: "plain", hidden: rows.length <= FIRST,
    onclick: () => { for (const row of made.rows) row.hidden = false; more.hidden = true; made.rows[FIRST + 1].querySelector("summary").focus(); } },
    `Show ${rows.length - FIRST} more`);
  const strongest = Math.max(...rows.map((row) => -Math.log10(row.p_value)), 1e-9);
  const made = el(
    "table", {},
    el("caption", {}, title),
    el("thead", {}, el("tr", {},
      el("th", { scope: "col" }, title === "Genes" ? "Gene" : "Disease"),
      el("th", { scope: "col" }, "Terms"),
      el("th", { scope: "col", title: "Hypergeometric probability of as many by chance, not corrected for the number tested" }, "p"))),
    el("tbody", {}, rows.map((row, number) => {
      const bar = el("span", { class: "bar", "aria-hidden": "true" });
      bar.style.inlineSize = `${Math.max(2, (100 * -Math.log10(row.p_value)) / strongest)}%`;
      const conflicts = row.denied.length + row.absent.length;
      return el("tr", { hidden: number >= FIRST },
        el("th", { scope: "row" }, el("details", {},
          el("summary", {}, el("span", { class: "item" }, row.name), " ", el("span", { class: "id" }, row.id),
            conflicts ? el("span", { class: "against" }, ` ${count(conflicts, "conflict")}`) : null),
          evidence(row, used, names))),
        el("td", { class: "matched" }, `${row.matched.length} of ${used.length}`,
          el("span", { class: "dots", "aria-hidden": "true" },
            used.slice(0, 24).map((term) => el("i", { class: row.matched.includes(term.id) ? "full" : "", title: term.name })))),
        el("td", { class: "p" }, probability(row.p_value), bar));
    })),
  );
  return el("div", {}, made, more);
}

function evidence(row, used, names) {
  const list = (title, ids) =>
    ids.length ? [el("dt", {}, title), el("dd", {}, ids.map((id) => names.get(id) ?? id).join(", "))] : [];
  return el("dl", {},
    list("Annotated with", row.matched),
    list("Not annotated with", used.map((term) => term.id).filter((id) => !row.matched.includes(id))),
    list("Annotated with, but negated in the note", row.denied),
    list("In the note, but recorded as absent in this disease", row.absent));
}

function probability(p) {
  if (p >= 0.001) return p.toFixed(3);
  if (p === 0) return "< 10⁻³⁰⁰";
  const power = Math.floor(Math.log10(p));
  const digits = [...String(-power)].map((digit) => SUPERSCRIPT[digit]).join("");
  return `${(p / 10 ** power).toFixed(1)} × 10⁻${digits}`;
}
