// Arrays of the data, which eval/views/subject.py packs: {dtype, shape, data: base64}.

const unpacked = new WeakMap();

// {shape, values}: a flat typed array, float16 as Float32Array. Each array is decoded once, when it is first needed.
export function unpack(packed) {
  if (!unpacked.has(packed)) {
    const bytes = Uint8Array.from(atob(packed.data), (character) => character.charCodeAt(0)).buffer;
    unpacked.set(packed, { shape: packed.shape, values: DECODE[packed.dtype](bytes) });
  }
  return unpacked.get(packed);
}

// The values at the first indices: row(logits, t) of a (T, V) array is V long, row(weights, l, h) of (L, H, T, T) is T x T.
export function row(packed, ...indices) {
  const { shape, values } = unpack(packed);
  const size = shape.slice(indices.length).reduce((product, length) => product * length, 1);
  const number = indices.reduce((total, index, axis) => total * shape[axis] + index, 0);
  return values.subarray(number * size, (number + 1) * size);
}

const DECODE = {
  float16: (bytes) => Float32Array.from(new Uint16Array(bytes), (bits) => HALVES[bits]),
  float32: (bytes) => new Float32Array(bytes),
  uint16: (bytes) => new Uint16Array(bytes),
  int32: (bytes) => new Int32Array(bytes),
};

// The number that each of the 65,536 bit patterns of a float16 stands for.
const HALVES = Float32Array.from({ length: 65536 }, (_, bits) => {
  const sign = bits >> 15 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction);
});
