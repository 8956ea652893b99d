// Elements and requests. Text only ever becomes text nodes and attributes, never markup.

export const byId = (id) => document.getElementById(id);

// An element with attributes, listeners ("onclick": function) and children (elements or strings).
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  fill(element, ...children);
  return element;
}

// Give an element other children; null and undefined are left out.
export function fill(element, ...children) {
  element.replaceChildren(...children.flat(2).filter((child) => child !== null && child !== undefined));
}

export const count = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

// The server's answer that says why not.
export class Refusal extends Error {
  constructor(status, detail, retryAfter) {
    super(detail);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

export async function call(path, { json, form, signal } = {}) {
  const request = { signal };
  if (json !== undefined) {
    request.method = "POST";
    request.headers = { "content-type": "application/json" };
    request.body = JSON.stringify(json);
  } else if (form !== undefined) {
    request.method = "POST";
    request.body = form;
  }
  let response;
  try {
    response = await fetch(path, request);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "The server does not answer. Is it still running?");
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new Refusal(
    response.status,
    problem.detail ?? `The server answered ${response.status}.`,
    Number(response.headers.get("retry-after") ?? 0),
  );
}

export async function fetchJson(path, options) {
  return (await call(path, options)).json();
}

export function download(name, blob) {
  const link = el("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
