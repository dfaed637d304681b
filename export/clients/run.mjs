// Runs a bundle's ONNX files on a request, in Node.js.
//
//   npm install onnxruntime-node          (or onnxruntime-web: slower, WebAssembly only)
//   node run.mjs <bundle> [<request.json>]
//
// The request is {"inputs": {"x": [example, ...]}}, as TensorFlow Serving takes it. Default: the request in the bundle.
// Prints JSON: the codes, the reconstruction and the score of every example.

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";

const ort = await import("onnxruntime-node").catch(() => import("onnxruntime-web"));
const ARRAYS = { float32: Float32Array, float64: Float64Array, uint8: Uint8Array, int32: Int32Array };

// {part: function}; each function takes nested lists by name and gives tensors by name. Refuses files that were changed.
async function load(bundle) {
  const manifest = JSON.parse(readFileSync(join(bundle, "manifest.json"), "utf8"));
  const parts = {};
  for (const part of manifest.parts.filter((part) => part.onnx)) {
    if (part.onnx.data) throw new Error(`${part.name} is larger than 2 GiB: run it in Python.`);
    const content = readFileSync(join(bundle, part.onnx.file));
    if (createHash("sha256").update(content).digest("hex") !== manifest.files[part.onnx.file].sha256) {
      throw new Error(`${part.onnx.file} is not the file that was exported: its SHA-256 is different.`);
    }
    const session = await ort.InferenceSession.create(new Uint8Array(content));
    parts[part.name] = (inputs) =>
      session.run(Object.fromEntries(part.inputs.map((port) => [port.name, tensor(inputs[port.name], port)])));
  }
  return parts;
}

// Refuses fractions where a port takes whole numbers, and 8-bit images where it takes them from 0 to 1.
function tensor(nested, { name, dtype, value_range: range }) {
  const shape = [], given = nested.flat(Infinity), values = ARRAYS[dtype].from(given);
  for (let level = nested; Array.isArray(level); level = level[0]) shape.push(level.length);
  const fits = dtype.includes("int")
    ? values.every((value, i) => value === given[i])
    : !range || given.some((value) => value < 0) || given.every((value) => !(value > 2 * range[1])); // noise takes an image a little beyond
  if (!fits) throw new Error(`${name} takes ${dtype}${range ? ` from ${range[0]} to ${range[1]}` : ""}: received other values.`);
  return new ort.Tensor(dtype, values, shape);
}

function nested(values, shape) {
  if (shape.length <= 1) return Array.from(values);
  const step = values.length / shape[0];
  return Array.from({ length: shape[0] }, (_, i) => nested(values.subarray(i * step, (i + 1) * step), shape.slice(1)));
}

const [bundle, request = join(bundle, "request.json")] = process.argv.slice(2);
const parts = await load(bundle);
const { inputs } = JSON.parse(readFileSync(request, "utf8"));
const answers = {};
for (const name of ["encoder", "autoencoder", "score"]) {
  for (const [port, output] of Object.entries(await parts[name](inputs))) answers[port] = nested(output.data, output.dims);
}
process.stdout.write(JSON.stringify(answers));
