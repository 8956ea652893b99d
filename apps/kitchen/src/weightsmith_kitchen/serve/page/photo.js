// The photo on a canvas, and the boxes that the reader draws on it, in pixels of the upright photo.
let bitmap = null;
let canvas = null;
let boxes = [];
let drawn = null; // the box that is being drawn
const SMALLEST = 16; // pixels on the screen: less is a click

export function photoBoxes(next) {
  if (next) boxes = next;
  return boxes;
}

export async function setPhoto(file, target) {
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    bitmap = null; // the browser cannot show what the server can read, such as TIFF
  }
  canvas = target;
  canvas.hidden = bitmap === null;
  if (bitmap) {
    canvas.width = bitmap.width;
    canvas.height = bitmap.height;
  }
}

export function drawPhoto() {
  if (!bitmap) return;
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0);
  const width = Math.max(2, bitmap.width / 200);
  context.font = `600 ${Math.max(14, bitmap.width / 28)}px system-ui, sans-serif`;
  for (const [number, box] of [...boxes, ...(drawn ? [drawn] : [])].entries()) {
    const [left, top, right, bottom] = box;
    for (const [color, line] of [["#000", width * 2], ["#7fe3d4", width]]) {
      context.strokeStyle = color;
      context.lineWidth = line;
      context.strokeRect(left, top, right - left, bottom - top);
    }
    context.lineWidth = width * 2;
    context.strokeStyle = "#000";
    context.strokeText(String(number + 1), left + 2 * width, top + bitmap.width / 24);
    context.fillStyle = "#7fe3d4";
    context.fillText(String(number + 1), left + 2 * width, top + bitmap.width / 24);
  }
}

const at = (event) => {
  const place = canvas.getBoundingClientRect();
  const clip = (value, most) => Math.min(Math.max(value, 0), most);
  return [
    clip((event.clientX - place.left) * (canvas.width / place.width), canvas.width),
    clip((event.clientY - place.top) * (canvas.height / place.height), canvas.height),
  ];
};

function listen() {
  const target = document.getElementById("canvas");
  let start = null;
  target.addEventListener("pointerdown", (event) => {
    if (!bitmap) return;
    start = at(event);
    target.setPointerCapture(event.pointerId);
  });
  target.addEventListener("pointermove", (event) => {
    if (!start) return;
    const [x, y] = at(event);
    drawn = [Math.min(x, start[0]), Math.min(y, start[1]), Math.max(x, start[0]), Math.max(y, start[1])];
    drawPhoto();
  });
  target.addEventListener("pointerup", () => {
    const scale = canvas ? canvas.width / canvas.getBoundingClientRect().width : 1;
    if (drawn && drawn[2] - drawn[0] >= SMALLEST * scale && drawn[3] - drawn[1] >= SMALLEST * scale) {
      boxes = [...boxes, drawn.map(Math.round)];
      target.dispatchEvent(new CustomEvent("boxes"));
    }
    start = null;
    drawn = null;
    drawPhoto();
  });
  target.addEventListener("pointercancel", () => { start = null; drawn = null; drawPhoto(); });
}
listen();
