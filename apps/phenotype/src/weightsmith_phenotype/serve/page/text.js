// Offsets and what is shown of a text.
//
// The server counts code points; JavaScript counts UTF-16 units, of which a character beyond U+FFFF, such as an emoji,
// has two.

const BEYOND = /[\u{10000}-\u{10ffff}]/gu;

export class Offsets {
  constructor(text) {
    this.text = text;
    this.units = []; // where each character of two units begins, in units
    for (const match of text.matchAll(BEYOND)) this.units.push(match.index);
  }

  // UTF-16 units before a code point.
  toUnits(points) {
    let low = 0, high = this.units.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.units[middle] - middle < points) low = middle + 1;
      else high = middle;
    }
    return points + low;
  }

  // Code points before a UTF-16 unit.
  toPoints(units) {
    let low = 0, high = this.units.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.units[middle] < units) low = middle + 1;
      else high = middle;
    }
    return units - low;
  }

  slice(start, end) {
    return this.text.slice(this.toUnits(start), this.toUnits(end));
  }
}

// Control characters, and those that change the order in which others are shown: they could make a note read differently.
const UNSEEN = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;

// The text with a sign for each such character; the sign has one unit too, so offsets stay.
export function visible(text) {
  return text.replace(UNSEEN, "\ufffd");
}

export function countUnseen(text) {
  return (text.match(UNSEEN) ?? []).length;
}

// Half of a surrogate pair cannot be sent as UTF-8.
export function wellFormed(text) {
  return text.replace(/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g, "\ufffd");
}

export function byteLength(text) {
  return new TextEncoder().encode(text).length;
}
