// The page: it holds the kit, and the server, which holds nothing, gives the next one.
import { Refusal, byId, call, count, download, el, fetchJson, fill } from "./dom.js";
import { drawPhoto, photoBoxes, setPhoto } from "./photo.js";

let answer = null; // the server's last answer
let past = []; // answers before it
let photoFile = null;
let busy = 0;
let example = "";

const whole = (number) => Math.round(number).toLocaleString("en");
const span = ([, low, high], unit) => (Math.round(low) === Math.round(high) ? "" : `${whole(low)} to ${whole(high)} ${unit}`);

function alertOf(error) {
  const box = byId("alert");
  box.hidden = !error;
  fill(box, error ? error.message : "");
}

// Run one request at a time; what is shown stays if it fails.
async function working(what, work) {
  if (busy) return undefined;
  busy += 1;
  document.body.dataset.busy = "";
  byId("status").textContent = what;
  try {
    const made = await work();
    alertOf(null);
    byId("status").textContent = "";
    return made;
  } catch (error) {
    if (error.name !== "Refusal" && error.constructor.name !== "Refusal") console.error(error);
    alertOf(error);
    byId("status").textContent = "";
    return undefined;
  } finally {
    busy -= 1;
    delete document.body.dataset.busy;
  }
}

function show(next, { keep = true } = {}) {
  fill(byId("said"));
  delete byId("said").dataset.failed;
  if (keep && answer) past.push(answer);
  answer = next;
  byId("undo").disabled = past.length === 0;
  render();
}

// A correction keeps the steps of the recipe.
const correct = (next) => show({ ...next, steps: answer.steps });

const ask = (path, json) => fetchJson(`/api/${path}`, { json });

async function change(fields, what = "Working") {
  const next = await working(what, () => ask("change", { kit: answer.kit, ...fields }));
  if (next) correct(next);
  else render(); // an input goes back to what it was
}

function row(item, place) {
  const shown = item.amount ? `${item.amount} ${item.called}` : item.text || item.name;
  const input = el("input", {
    type: "text", value: shown, maxlength: 400, "aria-label": `Ingredient ${place + 1}`,
    // Amounts are shown in kitchen fractions, and edited as they are.
    onfocus: (event) => { if (event.target.value === shown) event.target.value = item.line; },
    onblur: (event) => { if (event.target.value === item.line) event.target.value = shown; },
    onchange: (event) => { if (event.target.value !== item.line) change({ place, line: event.target.value }, "Reading the ingredient"); },
  });
  const energy = item.kcal ? [el("b", {}, `${whole(item.kcal[0])} kcal`), el("span", { class: "quiet" }, span(item.kcal, ""))] : [el("b", {}, "no energy")];
  const food = item.food ?? "no food";
  return el("li", {},
    el("div", { class: "head" }, input, el("div", { class: "energy" }, energy),
      el("button", { type: "button", class: "square plain", "aria-label": `Remove ${item.name || item.text}`, onclick: () => change({ place, remove: true }) }, "×")),
    el("div", { class: "source" },
      el("button", { type: "button", class: "plain", title: "Choose another row of the table", onclick: () => choose(place, item.name) }, food),
      item.food_id ? el("span", {}, `${item.source}, ${item.food_id}`) : null,
      item.grams ? el("span", {}, `${whole(item.grams[0])} g${item.basis ? ` by ${item.basis}` : ""}`) : null,
      item.notes.map((note) => el("span", { class: "flag" }, note))));
}

function render() {
  byId("empty").hidden = Boolean(answer);
  byId("made").hidden = !answer;
  if (!answer) return;
  byId("kit-title").textContent = answer.dish ? `Meal kit: ${answer.dish}` : "Meal kit";
  byId("total").textContent = `${whole(answer.kcal[0])} kcal`;
  byId("bounds").textContent = span(answer.kcal, "kcal");
  const each = answer.kcal_per_serving;
  const people = answer.servings_known ? `${whole(each[0])} kcal per person ${span(each, "kcal") ? `(${span(each, "kcal")})` : ""}` : "for the whole recipe";
  byId("each").textContent = [people.trim(), answer.yields].filter(Boolean).join("; ");
  byId("lower").hidden = answer.complete;
  byId("lower").textContent = `A lower bound: ${answer.missing}.`;
  byId("servings").value = answer.servings_known ? String(Number(answer.servings.toFixed(3))) : "";
  fill(byId("shopping").querySelector("summary"), `Shopping list: ${count(answer.shopping_list.length, "food", "foods")}`);
  fill(byId("shopping").querySelector("ul"), answer.shopping_list.map((line) => el("li", {}, line)));
  fill(byId("rows"), answer.rows.map(row));
  fill(byId("notes"), answer.notes.map((note) => el("li", {}, note)));
  byId("steps").hidden = !answer.steps?.length;
  if (answer.steps?.length) fill(byId("steps").querySelector("ol"), answer.steps.map((step) => el("li", {}, step)));
}

// Food chooser
let chosen = 0;
let asked = 0;

function choose(place, name) {
  chosen = place;
  byId("query").value = name;
  byId("chooser").showModal();
  byId("query").select();
  search();
}

async function search() {
  const number = (asked += 1);
  const query = byId("query").value.trim();
  if (!query) return fill(byId("hits"));
  let found;
  try {
    found = await fetchJson(`/api/foods?q=${encodeURIComponent(query)}&branded=${byId("branded").checked}`);
  } catch (error) {
    return fill(byId("hits"), el("li", { class: "alert" }, error.message));
  }
  if (number !== asked) return undefined; // a later search has begun
  return fill(byId("hits"), found.hits.length === 0 ? el("li", { class: "quiet" }, "No row has such a name.") : found.hits.map((hit) =>
    el("li", {}, el("button", { type: "button", onclick: () => { byId("chooser").close(); change({ place: chosen, food: hit.id }, "Pricing"); } },
      hit.name, el("small", {}, `${hit.kcal === null ? "no energy" : `${whole(hit.kcal)} kcal / 100 g`} · ${hit.source.replace("USDA FoodData Central, ", "")}`)))));
}

// Photos
async function recognize(file) {
  const boxes = photoBoxes();
  const form = new FormData();
  form.append("file", file);
  const path = boxes.length ? `/api/photo?boxes=${encodeURIComponent(JSON.stringify(boxes))}` : "/api/photo";
  const made = await working("Recognizing", () => fetchJson(path, { form }));
  if (!made) return;
  photoFile = file;
  if (!boxes.length) await setPhoto(file, byId("canvas"));
  drawPhoto();
  byId("photo").hidden = false;
  byId("unbox").hidden = boxes.length === 0;
  fill(byId("foods"), made.recognition.regions.map((region, number) => el("div", { class: "region" },
    region.box ? el("p", { class: "quiet" }, `Box ${number + 1}`) : null,
    region.answer === null ? el("p", { class: "flag" }, `Not recognized: ${region.reason}`) : null,
    region.candidates.slice(0, 4).map((guess) => el("div", { class: "guess" },
      el("span", {}, guess.label.replaceAll("-", " ")), el("meter", { min: 0, max: 1, value: guess.probability, "aria-label": guess.label }),
      el("span", {}, `${Math.round(100 * guess.probability)} %`))))));
  show(made);
}

// Listeners
byId("recipe").addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = byId("text").value;
  if (!text.trim()) return byId("text").focus();
  const next = await working("Reading the recipe", () => ask("recipe", { text }));
  if (next) {
    show(next);
    byId("kit-title").focus();
  }
  return undefined;
});
byId("example").addEventListener("click", () => { byId("text").value = example; byId("text").focus(); });
byId("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  event.target.value = "";
  if (file) { photoBoxes([]); recognize(file); }
});
byId("canvas").addEventListener("boxes", () => { if (photoFile) recognize(photoFile); });
byId("unbox").addEventListener("click", () => { photoBoxes([]); if (photoFile) recognize(photoFile); });
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    if (name === "dragover") document.body.dataset.drop = "";
    else delete document.body.dataset.drop;
    const file = name === "drop" ? event.dataTransfer.files[0] : undefined;
    if (!file) return;
    if (file.type.startsWith("text/")) file.text().then((text) => { byId("text").value = text; });
    else { photoBoxes([]); recognize(file); }
  });
}
byId("servings").addEventListener("change", async (event) => {
  const text = event.target.value.trim();
  const wanted = Number(text.replace(",", "."));
  const next = await working("Scaling", () => {
    if (!(wanted >= 0.01 && wanted <= 10000)) throw new Refusal(0, `people: found "${text}", expected a number from 0.01 to 10,000.`);
    return ask("scale", { kit: answer.kit, servings: wanted });
  });
  if (next) correct(next);
  else render();
});
byId("adding").addEventListener("submit", async (event) => {
  event.preventDefault();
  const line = byId("add").value.trim();
  if (!line) return;
  const next = await working("Reading the ingredient", () => ask("change", { kit: answer.kit, place: answer.rows.length, line }));
  if (next) { correct(next); byId("add").value = ""; }
});
byId("chat").addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = byId("say").value.trim();
  if (!text) return;
  const next = await working("Correcting", () => ask("chat", { kit: answer.kit, text }));
  if (!next) return;
  if (next.understood) {
    byId("say").value = "";
    correct(next);
  } else byId("said").dataset.failed = "";
  byId("said").textContent = next.said;
});
byId("undo").addEventListener("click", () => { show(past.pop(), { keep: false }); });
for (const button of document.querySelectorAll("[data-format]")) {
  button.addEventListener("click", () => working("Writing the file", async () => {
    const response = await call(`/api/export?format=${button.dataset.format}`, { json: { kit: answer.kit } });
    download(`meal-kit.${button.dataset.format}`, await response.blob());
  }));
}
byId("query").addEventListener("input", search);
byId("branded").addEventListener("change", search);
fetchJson("/api/status").then((status) => {
  example = status.example;
  byId("stamp").textContent = `${status.version} · ${status.foods.toLocaleString("en")} foods`;
}).catch(alertOf);
