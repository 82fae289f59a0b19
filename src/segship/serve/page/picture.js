// Pixels only: reading pictures, and drawing a picture with its mask. No network, no controls.

const LONGEST = 1600; // pixels of the preview's longer side; downloads are made by the server in full size

/** The picture as the browser shows it, or null where it cannot (TIFF in most browsers). */
export async function readPicture(blob, rotate) {
  const image = document.createElement("img");
  image.src = URL.createObjectURL(rotate ? blob : await withoutExif(blob));
  try {
    await image.decode();
    const size = previewSize(image.naturalWidth, image.naturalHeight);
    return { ...size, pixels: pixelsOf(image, size, true) };
  } catch {
    return null;
  } finally {
    URL.revokeObjectURL(image.src);
  }
}

/** A JPEG without its EXIF block, so that no browser turns it: some packages look at the pixels as they lie. */
async function withoutExif(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  if (bytes[0] !== 0xff || bytes[1] !== 0xd8) return blob;
  const parts = [bytes.subarray(0, 2)];
  let at = 2;
  while (bytes[at] === 0xff && bytes[at + 1] >= 0xe0 && bytes[at + 1] <= 0xef) {
    const end = at + 2 + 256 * bytes[at + 2] + bytes[at + 3];
    if (bytes[at + 1] !== 0xe1) parts.push(bytes.subarray(at, end));
    at = end;
  }
  return new Blob([...parts, bytes.subarray(at)], { type: "image/jpeg" });
}

/** A grey PNG's values: one byte a pixel of `width` x `height`, and the map's own size. */
export async function readMap(blob, exact) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const size = previewSize(bitmap.width, bitmap.height);
  const pixels = pixelsOf(bitmap, size, !exact).data;
  const values = new Uint8ClampedArray(size.width * size.height);
  for (let i = 0; i < values.length; i++) values[i] = pixels[4 * i];
  const full = { fullWidth: bitmap.width, fullHeight: bitmap.height };
  bitmap.close();
  return { ...size, ...full, values };
}

function previewSize(width, height) {
  const scale = Math.min(1, LONGEST / Math.max(width, height));
  return { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) };
}

function pixelsOf(source, { width, height }, smooth) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = smooth;
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, width, height);
  return context.getImageData(0, 0, width, height);
}

/** 0/255 where the map is above the threshold (0 … 1); without a threshold the map itself. */
export function maskOf(map, threshold) {
  if (threshold === null) return map.values;
  const mask = new Uint8ClampedArray(map.values.length);
  for (let i = 0; i < mask.length; i++) mask[i] = map.values[i] > threshold * 255 ? 255 : 0;
  return mask;
}

/** Percent of the picture that the mask covers. */
export function coverage(mask) {
  let sum = 0;
  for (const value of mask) sum += value;
  return (100 * sum) / (255 * mask.length);
}

/**
 * Draws into the canvas. `view` is overlay, mask, cutout or picture; `colorOf(i)` is the colour [r, g, b] of pixel i
 * in the mask, `edges` draws the mask's outline in it, `flat` shows the mask in these colours instead of greys.
 */
export function draw(canvas, { picture, width, height, mask, view, opacity, colorOf, edges, flat }) {
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  const out = context.createImageData(width, height);
  const ground = picture ? picture.data : null;
  for (let i = 0; i < mask.length; i++) {
    const at = 4 * i;
    const grey = ground ? 0 : 40; // a picture that the browser cannot show
    let red = ground ? ground[at] : grey, green = ground ? ground[at + 1] : grey, blue = ground ? ground[at + 2] : grey;
    let alpha = 255;
    if (view === "mask" && flat) [red, green, blue] = colorOf(i);
    else if (view === "mask") red = green = blue = mask[i];
    else if (view === "cutout") alpha = mask[i];
    else if (view === "overlay" && mask[i]) {
      const edge = edges && isEdge(mask, i, width);
      const part = edge && opacity > 0 ? 1 : (opacity * mask[i]) / 255;
      const color = colorOf(i);
      red += (color[0] - red) * part;
      green += (color[1] - green) * part;
      blue += (color[2] - blue) * part;
    }
    out.data[at] = red;
    out.data[at + 1] = green;
    out.data[at + 2] = blue;
    out.data[at + 3] = alpha;
  }
  context.putImageData(out, 0, 0);
}

function isEdge(mask, i, width) {
  const x = i % width;
  return (x > 0 && !mask[i - 1]) || (x < width - 1 && !mask[i + 1]) || mask[i - width] === 0 || mask[i + width] === 0;
}
