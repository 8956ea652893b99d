// What the reader does: enter a text, correct the mentions, export them, rank genes and diseases.

import { byId, call, count, download, el, fetchJson } from "./dom.js";
import { Inspector } from "./inspector.js";
import { NoteView, describe, inOrder, placeBubble, status } from "./note.js";
import { Ranking } from "./ranking.js";
import { Offsets, byteLength, countUnseen, visible, wellFormed } from "./text.js";

const EXAMPLE = `Genetics clinic, first visit
Age 9. Referred for tall stature and a heart murmur.

He has long, slender fingers (arachnodactyly), scoliosis, pectus excavatum and high myopia. Eyes: bilateral ectopia lentis. Echocardiogram: aortic root dilatation and mitral valve prolapse. Joint hypermobility. No cleft palate, no hearing impairment; he never had seizures. MRI of the spine: possible dural ectasia, to be confirmed.

Family history: his father had an aortic dissection at 41; his sister has migraine.`;
const HINT = "Ctrl+Enter finds terms, too.";
const GROUPS = { present: "Present", uncertain: "Uncertain", negated: "Negated", family: "Of a relative" };
const FILES = { phenopacket: "phenopacket.json", csv: "mentions.csv", json: "mentions.json" };

let text = "";
let offsets = new Offsets("");
let mentions = []; // in the order of the text; never changed in place, so that history keeps what was
let history = [];
let keys = 0;
let documentId = "note"; // the name of the file without its ending
let exported = true; // whether the corrections are in a file
let mostBytes = Infinity;

const say = (message) => { byId("status").textContent = message; };

function warn(message) {
  byId("alert").textContent = message;
  byId("alert").hidden = message === "";
}

// ---- entering a text ------------------------------------------------------------------------------------------------

function showEntry(editing) {
  byId("entry").hidden = false;
  byId("reading").hidden = true;
  byId("tools").hidden = true;
  byId("cancel").hidden = !editing;
  byId("hint").textContent = editing && history.length ? `Finding terms again replaces your ${count(history.length, "correction")}.` : HINT;
  byId("text").focus();
}

function showReading() {
  byId("entry").hidden = true;
  byId("reading").hidden = false;
  byId("tools").hidden = false;
  warn("");
}

function busy(yes) {
  document.body.toggleAttribute("data-busy", yes);
  for (const id of ["tag", "file", "example"]) byId(id).disabled = yes;
  byId("tag").textContent = yes ? "Finding terms …" : "Find terms";
  if (yes) say("Finding terms …");
}

async function tag(ask) {
  busy(true);
  warn("");
  try {
    const found = await ask();
    text = found.text;
    documentId = (found.filename ?? "").replace(/\.(txt|md)$/i, "") || "note";
    offsets = new Offsets(text);
    history = [];
    exported = true;
    mentions = inOrder(found.mentions.map((mention) => ({ ...mention, key: ++keys })));
    byId("text").value = text;
    inspector.hide();
    ranking.reset();
    const unseen = countUnseen(text);
    byId("unseen").hidden = unseen === 0;
    byId("unseen").textContent = `${count(unseen, "invisible control character")} of the text ${unseen === 1 ? "is" : "are"} shown as \ufffd.`;
    showReading();
    render();
    say(mentions.length ? `${summaryLine()}.` : "No term found.");
    note.note.focus({ preventScroll: true });
  } catch (error) {
    say("");
    warn(error.message);
  } finally {
    busy(false);
  }
}

function tagText(given) {
  const entered = wellFormed(given);
  if (entered.trim() === "") return warn("There is no text yet. Paste a note, open a file, or try the example.");
  if (byteLength(entered) > mostBytes) return warn(tooLarge(byteLength(entered)));
  return tag(async () => ({ ...(await fetchJson("/api/tag", { json: { text: entered } })), text: entered }));
}

function tagFile(file) {
  if (!file) return;
  if (!/\.(txt|md)$/i.test(file.name)) return warn(`${visible(file.name)} is not a .txt or .md file. Save the note as plain text.`);
  if (file.size > mostBytes) return warn(tooLarge(file.size));
  const form = new FormData();
  form.append("file", file);
  return tag(() => fetchJson("/api/upload", { form }));
}

const tooLarge = (bytes) =>
  `The text has ${bytes.toLocaleString("en")} bytes, more than the ${mostBytes.toLocaleString("en")} that this server takes. Send it in parts, or start the server with a larger --max-bytes.`;

// ---- correcting -----------------------------------------------------------------------------------------------------

function put(next) {
  history.push(mentions);
  exported = false;
  mentions = inOrder(next);
  render();
  ranking.changed();
}

function change(key, patch, reopen = false) {
  put(mentions.map((mention) => (mention.key === key ? { ...mention, ...patch } : mention)));
  const changed = mentions.find((mention) => mention.key === key);
  if (reopen) inspector.show(key);
  else inspector.refresh(changed);
  say(`Now: ${describe(changed)}.`);
}

function remove(key) {
  const place = mentions.findIndex((mention) => mention.key === key);
  const gone = mentions[place];
  inspector.hide();
  put(mentions.filter((mention) => mention.key !== key));
  note.focus((mentions[place] ?? mentions[place - 1])?.key);
  say(`Removed: ${visible(gone.text)}, ${gone.name}.`);
}

function add(range, term) {
  const { start, end } = { start: offsets.toPoints(range.start), end: offsets.toPoints(range.end) };
  const mention = {
    start, end, text: offsets.slice(start, end), concept_id: term.id, name: term.name, score: 1, source: "reader",
    negated: false, family: false, uncertain: false, kind: "Phenotype", key: ++keys,
  };
  put([...mentions, mention]);
  getSelection().removeAllRanges();
  open(mention.key);
  say(`Added: ${describe(mention)}.`);
}

function undo() {
  if (history.length === 0) return;
  mentions = history.pop();
  inspector.hide();
  render();
  ranking.changed();
  say(`Undone. ${summaryLine()}.`);
}

function open(key) {
  inspector.show(key);
  render();
  note.element(key)?.scrollIntoView({ block: "nearest" });
}

function close() {
  const { key } = inspector;
  inspector.hide();
  render();
  if (key !== null) note.focus(key);
  else byId("add").focus();
}

// ---- showing --------------------------------------------------------------------------------------------------------

const summaryLine = () =>
  `${count(mentions.length, "mention")} of ${count(new Set(mentions.map((mention) => mention.concept_id)).size, "term")}`;

function render() {
  note.render(offsets, mentions, inspector.key);
  byId("undo").disabled = history.length === 0;
  byId("summary").classList.toggle("behind", inspector.open);
  byId("export").hidden = text === "";
  byId("insight").hidden = text === "" || byId("insight").dataset.state === "unavailable";
  const list = byId("terms");
  if (text === "") return list.replaceChildren(el("ol", { class: "steps-list" },
      el("li", {}, "Find the terms that a note mentions: each is marked in place."),
      el("li", {}, "Correct them: remove, add or change a term, and say what is negated, uncertain or of a relative."),
      el("li", {}, "Export a phenopacket or a table, or rank the genes and diseases that the terms point to.")));
  if (mentions.length === 0) {
    return list.replaceChildren(el("p", { class: "empty" }, "No term found in this text. Select words in the note, or press “Add a term”, to add one."));
  }
  list.replaceChildren(...Object.entries(GROUPS).flatMap(([kind, title]) => group(kind, title)));
}

function group(kind, title) {
  const terms = new Map(); // id to mentions
  for (const mention of mentions) {
    if (status(mention) === kind) terms.set(mention.concept_id, [...(terms.get(mention.concept_id) ?? []), mention]);
  }
  if (terms.size === 0) return [];
  return [
    el("h3", { class: `group ${kind}` }, title, " ", el("span", { class: "number" }, String(terms.size))),
    el("ul", { class: "terms" }, [...terms.values()].map((same) =>
      el("li", {}, el("button", { type: "button", class: `row ${kind}`, onclick: () => open(same[0].key) },
        el("span", { class: "name" }, same[0].name, same.length > 1 ? el("span", { class: "times" }, ` × ${same.length}`) : null),
        el("span", { class: "id" }, same[0].concept_id),
        el("span", { class: "score", title: "score" }, Math.max(...same.map((mention) => mention.score)).toFixed(2)))))),
  ];
}

async function exportAs(format) {
  const body = {
    text,
    mentions: mentions.map(({ key, name, ...given }) => given),
    subject_id: byId("subject").value.trim() || "subject",
    document_id: documentId,
  };
  try {
    const answer = await call(`/api/export?format=${format}`, { json: body });
    download(FILES[format], await answer.blob());
    exported = true;
    say(`${FILES[format]} is in your downloads.`);
    warn("");
  } catch (error) {
    warn(error.message);
  }
}

// ---- wiring ---------------------------------------------------------------------------------------------------------

let selection = null;
const inspector = new Inspector(byId("inspector"), {
  mentions: () => mentions, text: () => text, change, remove, add, open, close,
});
const ranking = new Ranking(() => mentions);
const note = new NoteView(byId("note"), {
  open, remove,
  toggle: (key, flag) => change(key, { [flag]: !mentions.find((mention) => mention.key === key)[flag] }),
  selection: (selected) => {
    selection = selected;
    placeBubble(byId("reading").hidden ? null : selected);
  },
});

function addTerm() {
  const range = selection && { start: offsets.toUnits(selection.start), end: offsets.toUnits(selection.end) };
  byId("bubble").hidden = true;
  inspector.showNew(range);
  render();
}

byId("entry").addEventListener("submit", (event) => { event.preventDefault(); tagText(byId("text").value); });
byId("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) tagText(byId("text").value);
});
byId("example").addEventListener("click", () => { byId("text").value = EXAMPLE; tagText(EXAMPLE); });
byId("file").addEventListener("change", (event) => { tagFile(event.target.files[0]); event.target.value = ""; });
byId("cancel").addEventListener("click", () => { byId("text").value = text; showReading(); note.note.focus(); });
byId("edit").addEventListener("click", () => { inspector.hide(); render(); showEntry(true); });
byId("add").addEventListener("click", addTerm);
byId("undo").addEventListener("click", undo);
for (const id of ["bubble", "add"]) byId(id).addEventListener("mousedown", (event) => event.preventDefault()); // the selection stays
byId("bubble").addEventListener("click", addTerm);
byId("labels").addEventListener("change", (event) => { byId("note").dataset.labels = event.target.value; });
byId("export").addEventListener("submit", (event) => { event.preventDefault(); exportAs(event.submitter?.value ?? "phenopacket"); });
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && inspector.open) close();
  else if (event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey) && !event.target.closest("input, textarea")) {
    event.preventDefault();
    undo();
  }
});
addEventListener("beforeunload", (event) => { if (!exported) event.preventDefault(); });
for (const kind of ["dragover", "drop"]) {
  document.addEventListener(kind, (event) => {
    if (![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault(); // a dropped file must not replace the page
    if (kind === "drop" && !byId("entry").hidden) tagFile(event.dataTransfer.files[0]);
  });
}

render();
byId("hint").textContent = HINT;
fetchJson("/api/status")
  .then((server) => {
    mostBytes = server.max_bytes;
    byId("insight").dataset.state = server.insight;
    const version = server.ontology.version.split("/").pop();
    byId("stamp").textContent = `${server.ontology.name === "hp" ? "HPO" : server.ontology.name} ${version} · ${count(server.ontology.concepts, "term")}`;
  })
  .catch((error) => warn(error.message));
