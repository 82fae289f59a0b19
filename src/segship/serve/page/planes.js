// Three planes of a case: slices from the server, drawn with their labels. No forms, no jobs.

const KEPT = 48; // slices of a plane that stay decoded
const TITLES = { axial: "Axial", coronal: "Coronal", sagittal: "Sagittal" };
// which plane's slider follows a click in another plane, across and down, and whether it counts from the far end
const CROSS = {
  axial: [["sagittal", false], ["coronal", false]],
  coronal: [["sagittal", false], ["axial", true]],
  sagittal: [["coronal", false], ["axial", true]],
};

/** The planes of one job. `look()` gives what to draw with: {opacity, colors: Map(id → [r, g, b] or null), channel}. */
export class Planes {
  constructor(parent, job, look, failed) {
    this.job = job;
    this.look = look;
    this.failed = failed;
    this.all = Object.entries(job.planes).map(([name, about]) => new Plane(this, name, about));
    parent.replaceChildren(...this.all.map((plane) => plane.element));
    this.fit();
    for (const plane of this.all) plane.show();
  }

  get(name) {
    return this.all.find((plane) => plane.name === name);
  }

  redraw() {
    for (const plane of this.all) plane.show();
  }

  /** One scale in millimetres for all planes, as large as the room allows. */
  fit() {
    const sides = this.all.flatMap((plane) => [plane.widthMm, plane.heightMm]);
    const longest = Math.max(...sides);
    for (const plane of this.all) plane.fit(longest);
  }

  cross() {
    for (const plane of this.all) plane.cross();
  }
}

class Plane {
  constructor(planes, name, about) {
    Object.assign(this, { planes, name, about });
    this.widthMm = about.width * about.pixel_mm[0];
    this.heightMm = about.height * about.pixel_mm[1];
    this.slices = new Map();
    this.element = document.createElement("figure");
    this.element.className = "plane";
    this.element.dataset.plane = name;
    this.element.innerHTML = `<figcaption><label for="slice-${name}">${TITLES[name]}</label><output></output></figcaption>
      <div class="view"><canvas role="img"></canvas><i hidden></i><i hidden></i><b></b><b></b><b></b><b></b></div>
      <input type="range" id="slice-${name}" min="0" max="${about.slices - 1}" value="${about.start}">`;
    this.canvas = this.element.querySelector("canvas");
    this.view = this.element.querySelector(".view");
    this.slider = this.element.querySelector("input");
    this.element.querySelectorAll("b").forEach((mark, i) => (mark.textContent = about.edges[i] ?? ""));
    this.slider.disabled = about.slices < 2;
    this.slider.addEventListener("input", () => this.moved());
    this.view.addEventListener("wheel", (event) => this.turn(event), { passive: false });
    for (const kind of ["pointerdown", "pointermove"]) this.view.addEventListener(kind, (event) => this.point(event));
  }

  get index() {
    return Number(this.slider.value);
  }

  moved() {
    this.show();
    this.planes.cross();
  }

  turn(event) {
    event.preventDefault();
    this.slider.value = this.index + Math.sign(event.deltaY);
    this.moved();
  }

  /** A click or a drag with the mouse: the other planes go there. */
  point(event) {
    if (event.type === "pointermove" && (event.pointerType !== "mouse" || !(event.buttons & 1))) return;
    const box = this.canvas.getBoundingClientRect();
    const at = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    CROSS[this.name].forEach(([name, far], i) => {
      const other = this.planes.get(name);
      if (!other || at[i] < 0 || at[i] >= 1) return;
      const count = other.about.slices;
      const index = Math.floor(at[i] * count);
      other.slider.value = far ? count - 1 - index : index;
      other.show();
    });
    this.planes.cross();
  }

  /** Thin lines where the other planes cut this one. */
  cross() {
    this.element.querySelectorAll("i").forEach((line, i) => {
      const [name, far] = CROSS[this.name][i];
      const other = this.planes.get(name);
      line.hidden = !other;
      if (!other) return;
      const part = (other.index + 0.5) / other.about.slices;
      const at = far ? 1 - part : part;
      const { offsetLeft: left, offsetTop: top, offsetWidth: width, offsetHeight: height } = this.canvas;
      if (i === 0) line.style.cssText = `left:${left + at * width}px;top:${top}px;height:${height}px`;
      else line.style.cssText = `top:${top + at * height}px;left:${left}px;width:${width}px`;
    });
  }

  fit(longest) {
    this.canvas.style.width = `${(100 * this.widthMm) / longest}%`;
    this.canvas.style.height = `${(100 * this.heightMm) / longest}%`;
  }

  /** Draw the chosen slice; of those asked for while one is on its way only the last is fetched. */
  async show() {
    const { index } = this;
    this.element.querySelector("output").textContent = `${index + 1} / ${this.about.slices}`;
    this.canvas.setAttribute("aria-label", `${TITLES[this.name]} slice ${index + 1} of ${this.about.slices}`);
    this.again = this.fetching;
    if (this.fetching) return;
    this.fetching = true;
    try {
      const slice = await this.slice(index, this.planes.look().channel);
      draw(this.canvas, slice, this.planes.look());
      this.canvas.dataset.shown = index;
      this.planes.cross();
    } catch (error) {
      this.planes.failed(error);
      return;
    } finally {
      this.fetching = false;
    }
    if (this.again) this.show();
  }

  async slice(index, channel) {
    const key = `${channel}/${index}`;
    let slice = this.slices.get(key);
    if (!slice) {
      const answer = await fetch(`${this.planes.job.links.planes.slice(1)}/${this.name}/${index}?channel=${channel}`);
      if (!answer.ok) throw new Error((await answer.json()).error);
      slice = await pixels(await answer.blob());
      if (this.slices.size >= KEPT) this.slices.delete(this.slices.keys().next().value);
      this.slices.set(key, slice);
    }
    return slice;
  }
}

async function pixels(blob) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: bitmap.width, height: bitmap.height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

/** Red of `slice` is the brightness, green and blue the label; a label without a colour is not shown. */
export function draw(canvas, slice, { opacity, colors }) {
  const { width, height, data } = slice;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const out = new ImageData(width, height);
  for (let at = 0; at < data.length; at += 4) {
    const grey = data[at];
    const color = colors.get(data[at + 1] + 256 * data[at + 2]);
    for (let c = 0; c < 3; c++) out.data[at + c] = color ? grey + (color[c] - grey) * opacity : grey;
    out.data[at + 3] = 255;
  }
  canvas.getContext("2d").putImageData(out, 0, 0);
}
