// A pseudo random source that gives the same numbers for the same seed.

export class Random {
  #state;

  // `seed` and `stream` are whole numbers of up to 32 bits; each stream of a seed has its own numbers.
  constructor(seed, stream = 0) {
    this.#state = (Math.imul(seed, 0x9e3779b1) ^ Math.imul(stream + 1, 0x85ebca6b)) >>> 0;
    for (let warmUp = 0; warmUp < 4; warmUp += 1) this.#next();
  }

  // mulberry32
  #next() {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let mixed = this.#state;
    mixed = Math.imul(mixed ^ (mixed >>> 15), mixed | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return (mixed ^ (mixed >>> 14)) >>> 0;
  }

  // A whole number from `low` to `high`, both included.
  int(low, high) {
    return low + Math.floor((this.#next() / 2 ** 32) * (high - low + 1));
  }

  // True with the given probability.
  chance(probability) {
    return this.#next() / 2 ** 32 < probability;
  }

  pick(list) {
    return list[this.int(0, list.length - 1)];
  }

  // One of the values, each as likely as its weight says: `weighted([[3, 'often'], [1, 'seldom']])`.
  weighted(choices) {
    let place = (this.#next() / 2 ** 32) * choices.reduce((sum, [weight]) => sum + weight, 0);
    for (const [weight, value] of choices) {
      place -= weight;
      if (place < 0) return value;
    }
    return choices.at(-1)[1];
  }

  shuffle(list) {
    const shuffled = [...list];
    for (let last = shuffled.length - 1; last > 0; last -= 1) {
      const other = this.int(0, last);
      [shuffled[last], shuffled[other]] = [shuffled[other], shuffled[last]];
    }
    return shuffled;
  }
}
