// The note with its mentions in place.
//
// The text of the element is the note, character for character: labels are drawn by the style sheet from attributes, so
// that they are neither selected nor copied, and a selection's offsets are those of the note.

import { byId, el } from "./dom.js";
import { visible } from "./text.js";

export const FLAGS = ["negated", "uncertain", "family"];

// What decides the look and the group of a mention: of a relative, not there, perhaps there, or there.
export function status(mention) {
  if (mention.family) return "family";
  if (mention.negated) return "negated";
  return mention.uncertain ? "uncertain" : "present";
}

export function describe(mention) {
  const flags = FLAGS.filter((flag) => mention[flag]).join(", ");
  return `${visible(mention.text)}: ${mention.name}, ${mention.concept_id}, score ${mention.score.toFixed(2)}${flags && `, ${flags}`}`;
}

// In the order of the text; the longer one first where two begin together, and the surer one of two at one place.
export const inOrder = (mentions) =>
  [...mentions].sort((a, b) => a.start - b.start || b.end - a.end || b.score - a.score || a.key - b.key);

// Mentions that share characters, each group with the range it covers.
export function* groups(mentions) {
  let group = null;
  for (const mention of inOrder(mentions)) {
    if (group && mention.start < group.end) {
      group.mentions.push(mention);
      group.end = Math.max(group.end, mention.end);
    } else {
      if (group) yield group;
      group = { end: mention.end, mentions: [mention] };
    }
  }
  if (group) yield group;
}

export class NoteView {
  constructor(note, { open, toggle, remove, selection }) {
    this.note = note;
    this.offsets = null;
    note.addEventListener("click", (event) => {
      const key = keyOf(event.target);
      if (key !== null && getSelection().isCollapsed) open(key);
    });
    note.addEventListener("keydown", (event) => {
      const key = keyOf(event.target);
      if (key === null || event.ctrlKey || event.metaKey || event.altKey) return;
      const pressed = event.key.length === 1 ? event.key.toLowerCase() : event.key;
      const flag = { n: "negated", u: "uncertain", f: "family" }[pressed];
      if (pressed === "Enter" || pressed === " ") open(key);
      else if (flag) toggle(key, flag);
      else if (pressed === "Delete" || pressed === "Backspace") remove(key);
      else if (pressed === "ArrowRight") this.move(key, 1);
      else if (pressed === "ArrowLeft") this.move(key, -1);
      else return;
      event.preventDefault();
    });
    document.addEventListener("selectionchange", () => selection(this.selected()));
  }

  render(offsets, mentions, opened) {
    this.offsets = offsets;
    const focused = keyOf(document.activeElement);
    const nodes = [];
    let at = 0;
    const text = (start, end) => visible(offsets.slice(start, end));
    for (const { mentions: [first, ...others], end } of groups(mentions)) {
      if (at < first.start) nodes.push(text(at, first.start));
      nodes.push(mentionElement(first, opened, text(first.start, first.end)));
      if (first.end < end) nodes.push(el("span", { class: "overlap" }, text(first.end, end)));
      for (const other of others) nodes.push(mentionElement(other, opened, null));
      at = end;
    }
    nodes.push(text(at, at + offsets.text.length));
    this.note.replaceChildren(...nodes);
    if (focused !== null) this.focus(focused);
  }

  element(key) {
    return this.note.querySelector(`[data-key="${key}"]`);
  }

  // Put the focus on a mention; on the note if it is not there any more.
  focus(key) {
    (this.element(key) ?? this.note).focus();
  }

  move(key, step) {
    const all = [...this.note.querySelectorAll(".mention")];
    all[all.indexOf(this.element(key)) + step]?.focus();
  }

  // The selected part of the note, in code points, without blanks at its ends; null if there is none.
  selected() {
    const selection = getSelection();
    if (!this.offsets || this.note.hidden || selection.rangeCount === 0 || selection.isCollapsed) return null;
    const range = selection.getRangeAt(0);
    if (!this.note.contains(range.startContainer) || !this.note.contains(range.endContainer)) return null;
    const before = document.createRange();
    before.setStart(this.note, 0);
    before.setEnd(range.startContainer, range.startOffset);
    let start = before.toString().length;
    let end = start + range.toString().length;
    const { text } = this.offsets;
    while (start < end && /\s/.test(text[start])) start++;
    while (start < end && /\s/.test(text[end - 1])) end--;
    if (start === end) return null;
    return { start: this.offsets.toPoints(start), end: this.offsets.toPoints(end), box: range.getBoundingClientRect() };
  }
}

function keyOf(target) {
  const mention = target instanceof Element ? target.closest("#note .mention") : null;
  return mention ? Number(mention.dataset.key) : null;
}

// A span, not a <button>: a button is a block that neither breaks over lines nor can be selected across.
function mentionElement(mention, opened, text) {
  return el(
    "span",
    {
      class: `mention ${status(mention)}${text === null ? " nested" : ""}`,
      role: "button",
      tabindex: 0,
      "aria-label": describe(mention),
      "aria-expanded": String(mention.key === opened),
      "aria-controls": "inspector",
      "data-key": mention.key,
      "data-text": text === null ? visible(mention.text) : null,
      "data-flags": FLAGS.filter((flag) => mention[flag]).join(" · "),
      "data-id": mention.concept_id,
      "data-name": mention.name.toLowerCase() === mention.text.toLowerCase() ? "" : `${mention.name}\u00a0\u00a0`,
      "data-score": mention.score.toFixed(2),
    },
    text === null ? "" : el("span", {}, text),
  );
}

// The button beside a selection.
export function placeBubble(selection) {
  const bubble = byId("bubble");
  bubble.hidden = selection === null;
  if (selection === null) return;
  const host = bubble.offsetParent.getBoundingClientRect();
  const left = Math.min(Math.max(selection.box.left - host.left, 0), host.width - bubble.offsetWidth);
  bubble.style.left = `${left}px`;
  bubble.style.top = `${selection.box.bottom - host.top + 6}px`;
}
