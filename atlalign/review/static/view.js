// The section, the template over it, and the outlines on both, at any zoom.
//
// Places are in pixels of the section's image from its corner: the centre of its first pixel lies at (½, ½).

const DETAIL_MS = 120, BLINK_MS = 600, SQUARE_PX = 72, LONGEST_PX = 4096;
const OUTLINE = "#ffd60a", BEFORE = "#ff6ec7", DAMAGE = "rgb(255 90 90 / 45%)", POINT = "#ffffff", CHOSEN = "#57b2ea";

export class View {
  constructor(stage, picture) {
    this.stage = stage;
    this.picture = picture; // (box, width, height) → promise of a bitmap
    this.layers = ["section", "template", "overlay"].map((id) => stage.querySelector(`#${id}`));
    this.size = [1, 1];
    this.zoom = 1;
    this.origin = [0, 0]; // the image position at the corner of the window
    this.mode = "off";
    this.blend = 0.5;
    this.hasOutlines = true;
    this.isFitted = true; // the whole section is shown, even after the window is resized
    this.isBlank = false;
    this.points = [];
    this.areas = [];
    this.stroke = null;
    this.clear();
    new ResizeObserver(() => this.resize()).observe(stage);
    setInterval(() => { if (this.mode === "blink") { this.isBlank = !this.isBlank; this.drawTemplate(); } }, BLINK_MS);
  }

  clear() {
    this.overview = this.detail = this.template = this.lines = this.before = null;
    this.chosen = this.near = -1;
  }

  show(size) {
    this.clear();
    this.size = size;
    this.fit();
  }

  // --- places ---

  toScreen([x, y]) {
    return [(x - this.origin[0]) * this.zoom, (y - this.origin[1]) * this.zoom];
  }

  toPlace([x, y]) {
    return [x / this.zoom + this.origin[0], y / this.zoom + this.origin[1]];
  }

  get window() {
    return [this.stage.clientWidth, this.stage.clientHeight];
  }

  fit() {
    const [width, height] = this.window, [h, w] = this.size;
    this.isFitted = true;
    this.zoom = 0.96 * Math.min(width / w, height / h);
    this.origin = [w / 2 - width / 2 / this.zoom, h / 2 - height / 2 / this.zoom];
    this.moved();
  }

  zoomBy(factor, at = this.window.map((side) => side / 2)) {
    const [x, y] = this.toPlace(at), [h, w] = this.size;
    this.isFitted = false;
    const least = 0.3 * Math.min(this.window[0] / w, this.window[1] / h);
    this.zoom = Math.min(Math.max(this.zoom * factor, least), 32);
    this.origin = [x - at[0] / this.zoom, y - at[1] / this.zoom];
    this.moved();
  }

  pan([dx, dy]) {
    this.isFitted = false;
    this.origin = [this.origin[0] - dx / this.zoom, this.origin[1] - dy / this.zoom];
    this.moved();
  }

  resize() {
    const ratio = window.devicePixelRatio || 1, [width, height] = this.window;
    for (const layer of this.layers) [layer.width, layer.height] = [width * ratio, height * ratio];
    if (this.isFitted) this.fit();
    else this.moved();
  }

  moved() {
    this.draw();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.sharpen(), DETAIL_MS);
  }

  // Get the part of the image in the window, at the resolution of the window.
  async sharpen() {
    if (!this.overview) return;
    const [h, w] = this.size, ratio = window.devicePixelRatio || 1;
    const [left, top] = this.toPlace([0, 0]).map((side) => Math.max(0, Math.floor(side)));
    const [x, y] = this.toPlace(this.window), right = Math.min(w, Math.ceil(x)), bottom = Math.min(h, Math.ceil(y));
    if (left >= right || top >= bottom || this.zoom * ratio <= this.overview.width / w) return;
    const sides = [right - left, bottom - top].map((side) => Math.min(LONGEST_PX, Math.ceil(side * Math.min(this.zoom * ratio, 1))));
    const box = [left, top, right, bottom], asked = (this.asked = {});
    const bitmap = await this.picture(box, ...sides);
    if (asked !== this.asked || !bitmap) return;
    this.detail = { bitmap, box };
    this.drawSection();
  }

  // --- drawing ---

  draw() {
    this.drawSection();
    this.drawTemplate();
    this.drawOverlay();
  }

  // Return the context of an empty layer, in the same units as places.
  context(number) {
    const context = this.layers[number].getContext("2d"), ratio = window.devicePixelRatio || 1;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, context.canvas.width, context.canvas.height);
    const scale = this.zoom * ratio;
    context.setTransform(scale, 0, 0, scale, -this.origin[0] * scale, -this.origin[1] * scale);
    context.imageSmoothingEnabled = this.zoom < 4;
    return context;
  }

  drawSection() {
    const context = this.context(0), [h, w] = this.size;
    if (this.overview) context.drawImage(this.overview, 0, 0, w, h);
    if (this.detail) {
      const [left, top, right, bottom] = this.detail.box;
      context.drawImage(this.detail.bitmap, left, top, right - left, bottom - top);
    }
  }

  drawTemplate() {
    const context = this.context(1), [h, w] = this.size, [width, height] = this.window;
    if (!this.template || this.mode === "off" || (this.mode === "blink" && this.isBlank)) return;
    context.save();
    const shown = new Path2D();
    const rectangle = (x, y, wide, high) => {
      const [left, top] = this.toPlace([x, y]);
      shown.rect(left, top, wide / this.zoom, high / this.zoom);
    };
    if (this.mode === "wipe") rectangle(0, 0, width * this.blend, height);
    else if (this.mode === "checker") {
      for (let y = 0, row = 0; y < height; y += SQUARE_PX, row++) {
        for (let x = (row % 2) * SQUARE_PX; x < width; x += 2 * SQUARE_PX) rectangle(x, y, SQUARE_PX, SQUARE_PX);
      }
    } else rectangle(0, 0, width, height);
    context.clip(shown);
    if (this.mode === "fade") context.globalAlpha = this.blend;
    context.drawImage(this.template, 0, 0, w, h);
    context.restore();
  }

  drawOverlay() {
    const context = this.context(2), unit = 1 / this.zoom;
    context.fillStyle = DAMAGE;
    for (const area of this.areas) {
      const path = new Path2D();
      for (const ring of area) {
        ring.forEach(([x, y], number) => (number ? path.lineTo(x, y) : path.moveTo(x, y)));
        path.closePath();
      }
      context.fill(path, "evenodd");
    }
    if (this.stroke) this.drawStroke(context);
    if (this.hasOutlines) {
      if (this.before) this.drawLines(context, this.before, BEFORE, 1.1 * unit);
      if (this.lines) this.drawLines(context, this.lines, OUTLINE, 1.2 * unit);
    }
    if (this.near >= 0 && this.lines) this.drawRing(context, this.lines.at(this.near), 5 * unit, OUTLINE, unit);
    this.points.forEach((point, number) => {
      context.beginPath();
      context.arc(point[2] + 0.5, point[3] + 0.5, 5 * unit, 0, 2 * Math.PI);
      context.fillStyle = number === this.chosen ? CHOSEN : POINT;
      context.fill();
      context.lineWidth = 1.5 * unit;
      context.strokeStyle = "#000";
      context.stroke();
    });
  }

  drawStroke(context) {
    context.lineWidth = 2 * this.stroke.radius;
    context.lineCap = context.lineJoin = "round";
    context.strokeStyle = DAMAGE;
    context.beginPath();
    this.stroke.places.forEach(([x, y], number) => (number ? context.lineTo(x, y) : context.moveTo(x, y)));
    if (this.stroke.places.length === 1) context.lineTo(this.stroke.places[0][0] + 0.01, this.stroke.places[0][1]);
    context.stroke();
  }

  drawLines(context, lines, color, width) {
    context.lineWidth = width;
    context.strokeStyle = color;
    context.globalAlpha = 0.85;
    context.stroke(lines.path);
    context.globalAlpha = 1;
  }

  drawRing(context, [x, y], radius, color, unit) {
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.lineWidth = 2 * unit;
    context.strokeStyle = color;
    context.stroke();
  }
}

// The borders of regions, as the server sends them: places in the reference, and in the section.
export class Lines {
  constructor(buffer) {
    const [n, points] = new Int32Array(buffer, 0, 2);
    this.counts = new Int32Array(buffer, 8, n);
    this.reference = new Float32Array(buffer, 8 + 4 * n, 2 * points);
    this.section = new Float32Array(buffer, 8 + 4 * n + 8 * points, 2 * points);
    this.path = new Path2D();
    let place = 0;
    for (const count of this.counts) {
      for (let k = 0; k < count; k++, place++) {
        const [x, y] = this.at(place);
        if (k) this.path.lineTo(x, y);
        else this.path.moveTo(x, y);
      }
    }
  }

  at(number) {
    return [this.section[2 * number] + 0.5, this.section[2 * number + 1] + 0.5];
  }

  // Return the number of the point closest to a place; -1 if none is as close as `reach`.
  closest([x, y], reach) {
    let best = -1, least = reach * reach;
    for (let k = 0; 2 * k < this.section.length; k++) {
      const dx = this.section[2 * k] + 0.5 - x, dy = this.section[2 * k + 1] + 0.5 - y;
      const distance = dx * dx + dy * dy;
      if (distance < least) [best, least] = [k, distance];
    }
    return best;
  }
}
