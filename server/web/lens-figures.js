// Tells how far the use of experts is from what chance alone would give.

const ERROR = 0.05; // chance alone shows any cell of a map so often

/**
 * Returns how many standard deviations a cell must be away before it counts, in a map of so many cells.
 * A normal variable is further away than z with a probability of at most exp(-z² / 2), and Bonferroni's bound shares
 * ERROR among the cells.
 */
export function bound(cells) {
  return Math.sqrt(2 * Math.log(cells / ERROR));
}

/** Returns each cell's { count, ratio, beyond }: ratio 1 is the fair share, and beyond is -1, 0 (chance) or 1. */
export function against(exchange) {
  const { layers, experts, top_k: k } = exchange.shape;
  const share = k / experts;
  const expected = exchange.positions * share;
  const far = bound(layers.length * experts) * Math.sqrt(expected * (1 - share));
  return exchange.counts.map((row) =>
    row.map((count) => ({ count, ratio: expected ? count / expected : 1, beyond: beyond(count - expected, far) })),
  );
}

/** Returns each cell's { difference, far, beyond } between the shares of tokens that an expert serves in a and in b. */
export function between(a, b) {
  const z = bound(a.shape.layers.length * a.shape.experts);
  return a.counts.map((row, layer) => row.map((count, n) => cell(count, a.positions, b.counts[layer][n], b.positions, z)));
}

function cell(inA, ofA, inB, ofB, z) {
  if (!ofA || !ofB) return { difference: 0, far: 1, beyond: 0 };
  const difference = inA / ofA - inB / ofB;
  const both = (inA + inB) / (ofA + ofB); // the share if a and b do not differ
  const far = z * Math.sqrt(both * (1 - both) * (1 / ofA + 1 / ofB));
  return { difference, far, beyond: beyond(difference, far) };
}

function beyond(difference, far) {
  return Math.abs(difference) > far ? Math.sign(difference) : 0;
}

/** Returns the share of tokens whose first expert is that of the token before, over all layers. */
export function repeated(exchange) {
  const pairs = Math.max(0, exchange.positions - 1) * exchange.shape.layers.length;
  return pairs ? exchange.repeats.reduce((sum, count) => sum + count, 0) / pairs : 0;
}
