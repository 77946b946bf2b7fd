// The tuner of proto/README.md ("Your own tuner") and its state as bytes.

const MAGIC = 0x4d544e52; // "MTNR", read big-endian

const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  let c = n;
  for (let k = 0; k < 8; k++) c = c & 1 ? (c >>> 1) ^ 0xedb88320 : c >>> 1;
  return c;
});

function crc32(bytes) {
  let c = 0xffffffff;
  for (const byte of bytes) c = CRC[(c ^ byte) & 0xff] ^ (c >>> 8);
  return (c ^ 0xffffffff) >>> 0;
}

/** {step, n, groups: [[m, v, r, s, q], …]} from bytes. */
export function read(bytes) {
  const end = bytes.length - 4;
  if (bytes.readUInt32BE(0) !== MAGIC || bytes[4] !== 1 || bytes.readUInt32LE(end) !== crc32(bytes.subarray(0, end)))
    throw new Error("no tuner state of version 1");
  const n = bytes.readUInt16LE(6);
  let at = 20;
  const values = () => Array.from({ length: n }, () => bytes.readDoubleLE((at += 8) - 8));
  const groups = Array.from({ length: bytes.readUInt32LE(8) }, () => Array.from({ length: 5 }, values));
  return { step: Number(bytes.readBigUInt64LE(12)), n, groups };
}

/** The inverse of `read`. */
export function write({ step, n, groups }) {
  const bytes = Buffer.alloc(24 + 40 * n * groups.length);
  bytes.writeUInt32BE(MAGIC, 0);
  bytes[4] = 1;
  bytes.writeUInt16LE(n, 6);
  bytes.writeUInt32LE(groups.length, 8);
  bytes.writeBigUInt64LE(BigInt(step), 12);
  let at = 20;
  for (const value of groups.flat(2)) at = bytes.writeDoubleLE(value, at);
  bytes.writeUInt32LE(crc32(bytes.subarray(0, at)), at);
  return bytes;
}

const total = (values) => values.reduce((sum, value) => sum + value, 0);

/** S of each group. */
export const scales = (state) => state.groups.map(([, , , s]) => total(s));

/** The state after a step. `reductions` has one array per field, as the message has. */
export function advance(state, config, reductions, hold = false) {
  const { delta_dot_g, delta_dot_x, g_norm_sq, x_norm_sq } = reductions;
  const finite = [delta_dot_g, delta_dot_x, g_norm_sq, x_norm_sq].every((values) => values.every(Number.isFinite));
  if (hold || !finite) return { ...state, step: state.step + 1 };
  const { s_decay, s_init, eps, betas } = config;
  const groups = state.groups.map(([m, v, r, s, q], i) => {
    const S = total(s);
    let h =
      delta_dot_g[i] +
      (s_decay * S * Math.sqrt(g_norm_sq[i]) * delta_dot_x[i]) / (Math.sqrt(x_norm_sq[i]) + eps);
    h = Math.min(Math.max(h, -1e140), 1e140);
    const next = [[], [], [], [], q];
    betas.forEach((beta, k) => {
      const mk = Math.max(beta * m[k], Math.abs(h));
      const vk = Math.min(beta * beta * v[k] + h * h, 1e300);
      const rk = Math.min(Math.max(beta * r[k] - s[k] * h, 0), 1e200);
      const sk = Math.min(((s_init * mk) / betas.length + rk) / (Math.sqrt(vk) + eps), 1e30);
      [mk, vk, rk, sk].forEach((value, field) => next[field].push(value));
    });
    return next;
  });
  return { step: state.step + 1, n: state.n, groups };
}
