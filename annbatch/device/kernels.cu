// How do the rows of a window become batches on a device?
//
// A window lies in the memory of the device as it was stored: `values` and `indices` in their narrow types, row behind
// row, or chunk behind chunk with each chunk's bytes shuffled. Every row of a batch knows where it begins there.
//
// 1. `unpack_blocks` unpacks the blocks of packed chunks (docs/packed.md) that a window needs.
// 2. `undo_differences` sums up the chunks that are stored as differences.
// 3. `check_rows` says which rows do not ascend, and whether an index is out of range.
// 4. `scatter_csr` copies rows to their places in a CSR batch, and widens them.
// 5. `scatter_dense` writes rows into a dense batch that was set to zero.
// 6. `sum_rows` sums up rows for the other two, where they are to normalise values.
//
// All parameters are 64-bit integers: addresses and sizes. A block of threads works on a row, a chunk or a packed block.
// No thread waits for another, except at the end of a PHASE. The types are macros:
//
//   VALUE, INDEX          types of stored values and column numbers
//   OUT, INDEX_OUT        types of those handed over
//   HALF, BFLOAT16        if OUT is unsigned short for the bits of such a number
//   LOG_NORMALIZE         if values become log1p(value * target / total of the row)
//   BINARIZE              if values become 1 above 0, and else 0

typedef long long i64;

#ifndef VALUE
#define VALUE unsigned short
#endif
#ifndef INDEX
#define INDEX unsigned short
#endif
#ifndef OUT
#define OUT float
#endif
#ifndef INDEX_OUT
#define INDEX_OUT int
#endif

// --- types -----------------------------------------------------------------------------------------------------------

union Bits {
  float value;
  unsigned int bits;
};

__device__ inline unsigned short round_bits(unsigned int bits, int shift) {
  unsigned int half = (1u << (shift - 1)) - 1u, odd = (bits >> shift) & 1u;
  return (unsigned short)((bits + half + odd) >> shift);
}

// IEEE 754 binary16, to nearest, ties to even; NaN keeps its upper bits.
__device__ inline unsigned short to_half(float value) {
  Bits found;
  found.value = value;
  unsigned int sign = (found.bits >> 16) & 0x8000u, bits = found.bits & 0x7fffffffu;
  if (bits >= 0x7f800000u) {
    unsigned int payload = (bits >> 13) & 0x3ffu;
    return (unsigned short)(sign | 0x7c00u | (bits > 0x7f800000u && payload == 0u ? 1u : payload));
  }
  if (bits >= 0x477ff000u) return (unsigned short)(sign | 0x7c00u);
  if (bits < 0x33000001u) return (unsigned short)sign;
  if (bits < 0x38800000u) {
    int shift = 126 - (int)(bits >> 23);
    return (unsigned short)(sign | round_bits((bits & 0x7fffffu) | 0x800000u, shift));
  }
  return (unsigned short)(sign | round_bits(bits - 0x38000000u, 13));
}

__device__ inline float from_half(unsigned short half) {
  unsigned int sign = (half & 0x8000u) << 16, exponent = (half >> 10) & 31u, fraction = half & 0x3ffu;
  Bits found;
  if (exponent == 0u) {
    found.value = (float)fraction * 5.9604644775390625e-8f;
    found.bits |= sign;
  } else {
    found.bits = sign | (fraction << 13) | (exponent == 31u ? 0x7f800000u : (exponent + 112u) << 23);
  }
  return found.value;
}

// The upper half of a float32, to nearest, ties to even.
__device__ inline unsigned short to_bfloat16(float value) {
  Bits found;
  found.value = value;
  if ((found.bits & 0x7fffffffu) > 0x7f800000u) return (unsigned short)((found.bits >> 16) | 0x40u);
  return round_bits(found.bits, 16);
}

__device__ inline float from_bfloat16(unsigned short upper) {
  Bits found;
  found.bits = (unsigned int)upper << 16;
  return found.value;
}

#if defined(HALF) || defined(BFLOAT16)
typedef float PLAIN;
#else
typedef OUT PLAIN;
#endif

#if defined(HALF)
__device__ inline OUT narrowed(PLAIN value) { return to_half(value); }
__device__ inline OUT converted(VALUE value) { return to_half((float)value); }
__device__ inline OUT sum(OUT old, VALUE value) { return to_half(from_half(old) + (float)value); }
#elif defined(BFLOAT16)
__device__ inline OUT narrowed(PLAIN value) { return to_bfloat16(value); }
__device__ inline OUT converted(VALUE value) { return to_bfloat16((float)value); }
__device__ inline OUT sum(OUT old, VALUE value) { return to_bfloat16(from_bfloat16(old) + (float)value); }
#else
__device__ inline OUT narrowed(PLAIN value) { return value; }
__device__ inline OUT converted(VALUE value) { return (OUT)value; }
#endif
// As compiled Python adds: integers of 32 bits and more to floats as float64.
__device__ inline float sum_as(float old, float value) { return old + value; }
__device__ inline float sum_as(float old, double value) { return (float)((double)old + value); }
__device__ inline float sum_as(float old, i64 value) { return (float)((double)old + (double)value); }
__device__ inline float sum_as(float old, unsigned long long value) { return (float)((double)old + (double)value); }
__device__ inline float sum_as(float old, int value) { return (float)((double)old + (double)value); }
__device__ inline float sum_as(float old, unsigned int value) { return (float)((double)old + (double)value); }
__device__ inline float sum_as(float old, short value) { return old + (float)value; }
__device__ inline float sum_as(float old, unsigned short value) { return old + (float)value; }
__device__ inline float sum_as(float old, signed char value) { return old + (float)value; }
__device__ inline float sum_as(float old, unsigned char value) { return old + (float)value; }
template <typename A, typename B>
__device__ inline A sum_as(A old, B value) { return (A)(old + (A)value); }
#if !defined(HALF) && !defined(BFLOAT16)
__device__ inline OUT sum(OUT old, VALUE value) { return sum_as(old, value); }
#endif

// --- normalising -----------------------------------------------------------------------------------------------------

union Word {
  double value;
  i64 bits;
};

// Rounded by itself, so that the compiler makes no fused operation of a product and a sum, which would round once.
#if defined(__CUDACC__) || defined(__CUDACC_RTC__) || defined(__HIPCC__)
__device__ inline double times(double a, double b) { return __dmul_rn(a, b); }
__device__ inline double plus(double a, double b) { return __dadd_rn(a, b); }
#else
__device__ inline double times(double a, double b) {
  volatile double product = a * b;
  return product;
}
__device__ inline double plus(double a, double b) { return a + b; }
#endif

// As `_log1p` of `annbatch.batches.value_kernels`, step by step.
__device__ inline double log1p_of(double value) {
  const i64 sqrt_half_bits = 0x3fe6a09e667f3bcdLL;
  Word one, m, infinity;
  infinity.bits = 0x7ff0000000000000LL;
  one.value = plus(1.0, value);
  if (!(one.value > 0.0 && one.value < infinity.value))
    return !(one.value >= 0.0) ? infinity.value - infinity.value : one.value > 0.0 ? one.value : -infinity.value;
  double lost = plus(value, -plus(one.value, -1.0)) / one.value;
  i64 exponent = (one.bits - sqrt_half_bits) >> 52;
  m.bits = one.bits - exponent * 0x10000000000000LL;
  double s = plus(m.value, -1.0) / plus(m.value, 1.0), z = times(s, s), series = 1.0 / 21.0;
  for (int k = 19; k > 0; k -= 2) series = plus(times(series, z), 1.0 / k);
  return plus(times((double)exponent, 0.6931471805599453), plus(times(times(2.0, s), series), lost));
}

__device__ inline double scale_of(i64 totals, i64 row, i64 target_bits) {
  if (totals == 0) return 1.0;
  Word target;
  target.bits = target_bits;
  double total = ((const double*)totals)[row];
  return total != 0.0 ? target.value / total : 1.0;
}

// What becomes of a value, or of the sum of those that have one column.
#if defined(LOG_NORMALIZE)
__device__ inline OUT made(PLAIN value, double scale) { return narrowed((PLAIN)log1p_of(times((double)value, scale))); }
#elif defined(BINARIZE)
__device__ inline OUT made(PLAIN value, double scale) { return narrowed(value > (PLAIN)0 ? (PLAIN)1 : (PLAIN)0); }
#endif

// --- a window --------------------------------------------------------------------------------------------------------

// Elements of a window: chunks of `n` elements, `nbytes` apart; shuffled or not.
struct Staged {
  const unsigned char* at;
  i64 n, nbytes, is_shuffled;
};

__device__ inline Staged staged(i64 at, i64 n, i64 nbytes, i64 is_shuffled) {
  Staged found = {(const unsigned char*)at, n, nbytes, is_shuffled};
  return found;
}

// A part of a row that lies in one chunk: its chunk, the first element there, and how many elements the chunk has left.
struct Run {
  const unsigned char* chunk;
  i64 first, left;
};

__device__ inline Run run_at(const Staged& of, i64 position) {
  i64 chunk = position / of.n;
  Run found = {of.at + chunk * of.nbytes, position - chunk * of.n, (chunk + 1) * of.n - position};
  return found;
}

template <typename T>
__device__ inline T element(const Staged& of, const unsigned char* chunk, i64 e) {
  if (!of.is_shuffled) return ((const T*)chunk)[e];
  union {
    T value;
    unsigned char bytes[sizeof(T)];
  } found;
  for (int k = 0; k < (int)sizeof(T); k++) found.bytes[k] = chunk[k * of.n + e];
  return found.value;
}

template <typename T>
__device__ inline void set_element(const Staged& of, unsigned char* chunk, i64 e, T value) {
  if (!of.is_shuffled) {
    ((T*)chunk)[e] = value;
    return;
  }
  union {
    T value;
    unsigned char bytes[sizeof(T)];
  } wanted;
  wanted.value = value;
  for (int k = 0; k < (int)sizeof(T); k++) chunk[k * of.n + e] = wanted.bytes[k];
}

__device__ inline i64 column_at(const Staged& of, i64 position) {
  Run run = run_at(of, position);
  return (i64)element<INDEX>(of, run.chunk, run.first);
}

__device__ inline VALUE value_at(const Staged& of, i64 position) {
  Run run = run_at(of, position);
  return element<VALUE>(of, run.chunk, run.first);
}

__device__ inline i64 least(i64 a, i64 b) { return a < b ? a : b; }

// --- threads that wait for each other --------------------------------------------------------------------------------

// The threads of a block run the body for i in range(n) between them, and then wait for each other. So a body may use
// what earlier phases wrote to shared memory, and nothing that other threads write in its own phase.
#ifndef PHASE
#define PHASE(i, n)                                                   \
  for (bool is_on = true; is_on; __syncthreads(), is_on = false)      \
    for (int i = threadIdx.x; i < (n); i += blockDim.x)
#endif

// --- packed blocks ---------------------------------------------------------------------------------------------------

enum { PACKED_VALUES = 256, LANES = 16, FLAGS_NBYTES = PACKED_VALUES / 8 };

// The parts of a block, as docs/packed.md names them.
struct Packed {
  const unsigned char *words, *flags, *extras, *places, *patches;
  int width, extra, n_extras, patch_nbytes, n_patches;
};

__device__ inline bool is_sound(const Packed& block) {
  int bits = 8 * (int)sizeof(VALUE);
  if (block.width > bits || block.patch_nbytes > (int)sizeof(VALUE)) return false;
  if (block.extra != 0 && block.extra != 2 && block.extra != 4) return false;
  if (block.extra == 0 && block.n_extras != 0) return false;
  return block.n_patches == 0 || block.width + block.extra < bits;
}

// Find the parts of the block that begins at byte `at` of `nbytes`; false if its descriptor is unsound, or it does not
// lie there.
__device__ inline bool find_parts(Packed& block, i64 descriptor, i64 bytes, i64 at, i64 nbytes) {
  block.width = (int)(descriptor & 255);
  block.extra = (int)(descriptor >> 8 & 15);
  block.patch_nbytes = (int)(descriptor >> 12 & 15);
  block.n_extras = (int)(descriptor >> 16 & 255);
  block.n_patches = (int)(descriptor >> 24 & 255);
  int flags = 32 * block.width;
  int extras = flags + (block.extra == 0 ? 0 : FLAGS_NBYTES);
  int places = extras + (block.n_extras * block.extra + 7) / 8;
  int patches = places + block.n_patches;
  int end = patches + block.n_patches * block.patch_nbytes;
  if (!is_sound(block) || end > PACKED_VALUES * (int)sizeof(VALUE) || at < 0 || at > nbytes - end) return false;
  block.words = (const unsigned char*)bytes + at;
  block.flags = block.words + flags;
  block.extras = block.words + extras;
  block.places = block.words + places;
  block.patches = block.words + patches;
  return true;
}

// Blocks begin at any byte.
__device__ inline unsigned int load_pair(const unsigned char* at) { return at[0] | (unsigned int)at[1] << 8; }

__device__ inline int count_bits(unsigned int byte) {
  byte -= byte >> 1 & 0x55u;
  byte = (byte & 0x33u) + (byte >> 2 & 0x33u);
  return (int)((byte + (byte >> 4)) & 15u);
}

// The bits of number i that are stored for all numbers.
__device__ inline unsigned long long unpack_word(const Packed& block, int i) {
  unsigned long long found = 0;
  for (int plane = 0; 16 * plane < block.width; plane++) {
    int bits = (int)least(16, block.width - 16 * plane), bit = i / LANES * bits, shift = bit % 16;
    const unsigned char* word = block.words + 512 * plane + 2 * (bit / 16 * LANES + i % LANES);
    unsigned int value = load_pair(word) >> shift;
    if (shift + bits > 16) value |= load_pair(word + 2 * LANES) << (16 - shift);
    found |= (unsigned long long)(value & ((1u << bits) - 1u)) << (16 * plane);
  }
  return found;
}

// The extra bits of number i, of which `before` numbers before its byte of flags are flagged.
__device__ inline unsigned int unpack_extra(const Packed& block, int i, int before) {
  unsigned int byte = block.flags[i / 8];
  if ((byte >> (i % 8) & 1u) == 0) return 0;
  int rank = before + count_bits(byte & ((1u << (i % 8)) - 1u));
  if (rank >= block.n_extras) return 0;
  int bit = rank * block.extra;
  return (unsigned int)(block.extras[bit / 8] >> (bit % 8)) & ((1u << block.extra) - 1u);
}

// --- kernels ---------------------------------------------------------------------------------------------------------

// Unpack blocks into `out`, 256 values of VALUE (unsigned) behind each other. Block b begins at byte sources[b] of
// `bytes`; bit 32 of descriptors[b] says whether it holds differences. Whatever the bytes are, nothing outside of
// range(nbytes) is read and no other value written: `broken` is set to the number (from 1) of a block that is unsound.
extern "C" __global__ void unpack_blocks(
    i64 bytes, i64 nbytes, i64 sources, i64 descriptors, i64 bases, i64 n_blocks, i64 out, i64 broken) {
  __shared__ VALUE numbers[PACKED_VALUES], row_sums[LANES];
  __shared__ int flagged_before[FLAGS_NBYTES];
  for (i64 b = blockIdx.x; b < n_blocks; b += gridDim.x) {
    i64 descriptor = ((const i64*)descriptors)[b];
    bool is_delta = (descriptor >> 32 & 1) != 0;
    VALUE base = (VALUE)((const i64*)bases)[b];
    VALUE* to = (VALUE*)out + b * PACKED_VALUES;
    Packed block;
    if (!find_parts(block, descriptor, bytes, ((const i64*)sources)[b], nbytes)) {
      *(i64*)broken = b + 1;
      continue;
    }
    PHASE(k, block.extra == 0 ? 0 : FLAGS_NBYTES) {
      int before = 0;
      for (int j = 0; j < k; j++) before += count_bits(block.flags[j]);
      flagged_before[k] = before;
      if (k == FLAGS_NBYTES - 1 && before + count_bits(block.flags[k]) != block.n_extras) *(i64*)broken = b + 1;
    }
    PHASE(i, PACKED_VALUES) {
      unsigned long long number = unpack_word(block, i);
      if (block.extra != 0)
        number += (unsigned long long)unpack_extra(block, i, flagged_before[i / 8]) << block.width;
      numbers[i] = (VALUE)number;
    }
    // Places that do not ascend may meet in one number, which is void then.
    PHASE(j, block.n_patches) {
      unsigned long long patch = 0;
      for (int k = 0; k < block.patch_nbytes; k++)
        patch |= (unsigned long long)block.patches[j * block.patch_nbytes + k] << (8 * k);
      if (j > 0 && block.places[j - 1] >= block.places[j]) *(i64*)broken = b + 1;
      numbers[block.places[j]] += (VALUE)(patch << (block.width + block.extra));
    }
    if (!is_delta) {
      PHASE(i, PACKED_VALUES) to[i] = (VALUE)(base + numbers[i]);
      continue;
    }
    PHASE(row, PACKED_VALUES / LANES) {
      VALUE sum = 0;
      for (int i = row * LANES; i < (row + 1) * LANES; i++) {
        sum = (VALUE)(sum + numbers[i]);
        numbers[i] = sum;
      }
      row_sums[row] = sum;
    }
    PHASE(i, PACKED_VALUES) {
      VALUE sum = (VALUE)(base + (VALUE)i + numbers[i]);
      for (int row = 0; row < i / LANES; row++) sum = (VALUE)(sum + row_sums[row]);
      to[i] = sum;
    }
  }
}

enum { RUN = 16, RUNS = 256, GROUPS = RUNS / RUN, TILE = RUN * RUNS };

// Replace the elements of those chunks for which `are_differences` (int64) is not 0 by their running sums, which wrap as
// VALUE (unsigned) does. A block of threads works on a tile after the other: on runs of elements, then on groups of runs.
extern "C" __global__ void undo_differences(
    i64 values, i64 n, i64 nbytes, i64 is_shuffled, i64 are_differences, i64 n_chunks) {
  __shared__ VALUE numbers[TILE], run_sums[RUNS], group_sums[GROUPS], before[GROUPS + 1];
  Staged of = staged(values, n, nbytes, is_shuffled);
  for (i64 c = blockIdx.x; c < n_chunks; c += gridDim.x) {
    if (((const i64*)are_differences)[c] == 0) continue;
    unsigned char* chunk = (unsigned char*)values + c * nbytes;
    for (i64 first = 0; first < n; first += TILE) {
      int n_here = (int)least(TILE, n - first);
      PHASE(i, TILE) numbers[i] = i < n_here ? element<VALUE>(of, chunk, first + i) : (VALUE)0;
      PHASE(run, RUNS) {
        VALUE sum = 0;
        for (int i = run * RUN; i < (run + 1) * RUN; i++) numbers[i] = sum = (VALUE)(sum + numbers[i]);
        run_sums[run] = sum;
      }
      PHASE(group, GROUPS) {
        VALUE sum = 0;
        for (int run = group * RUN; run < (group + 1) * RUN; run++) run_sums[run] = sum = (VALUE)(sum + run_sums[run]);
        group_sums[group] = sum;
      }
      PHASE(one, 1) {
        VALUE sum = first == 0 ? (VALUE)0 : before[GROUPS];
        for (int group = 0; group < GROUPS; group++) {
          before[group] = sum;
          sum = (VALUE)(sum + group_sums[group]);
        }
        before[GROUPS + one] = sum;
      }
      PHASE(i, n_here) {
        int run = i / RUN;
        VALUE sum = (VALUE)(before[run / RUN] + numbers[i]);
        set_element<VALUE>(of, chunk, first + i, run % RUN == 0 ? sum : (VALUE)(sum + run_sums[run - 1]));
      }
    }
  }
}

// For rows of a window: `unordered` is set to 1 where column numbers do not ascend; `wrong` to the number (from 1, of
// the window) of a row that has a column number out of range(n_columns).
extern "C" __global__ void check_rows(
    i64 indices, i64 index_n, i64 index_nbytes, i64 index_is_shuffled,
    i64 index_rows, i64 starts, i64 n_rows, i64 n_columns, i64 unordered, i64 wrong, i64 first_row) {
  Staged of = staged(indices, index_n, index_nbytes, index_is_shuffled);
  const i64* from = (const i64*)index_rows;
  const i64* start = (const i64*)starts;
  for (i64 row = blockIdx.x; row < n_rows; row += gridDim.x) {
    i64 length = start[row + 1] - start[row];
    for (i64 done = 0; done < length;) {
      Run run = run_at(of, from[row] + done);
      i64 n = least(run.left, length - done);
      for (i64 k = threadIdx.x; k < n; k += blockDim.x) {
        i64 e = run.first + k;
        INDEX column = element<INDEX>(of, run.chunk, e);
        if ((i64)column < 0 || (i64)column >= n_columns) *(i64*)wrong = first_row + row + 1;
        if (done + k == 0) continue;
        INDEX before = e > 0 ? element<INDEX>(of, run.chunk, e - 1) : element<INDEX>(of, run.chunk - of.nbytes, of.n - 1);
        if (before >= column) ((unsigned char*)unordered)[row] = 1;
      }
      done += n;
    }
  }
}

// For the rows of a batch: their totals, double. A thread sums up a row, in the order of `_total` of
// `annbatch.batches.value_kernels`.
extern "C" __global__ void sum_rows(
    i64 values, i64 value_n, i64 value_nbytes, i64 value_is_shuffled, i64 value_rows, i64 starts, i64 n_rows, i64 totals) {
  Staged of = staged(values, value_n, value_nbytes, value_is_shuffled);
  const i64* from = (const i64*)value_rows;
  const i64* start = (const i64*)starts;
  for (i64 row = threadIdx.x * (i64)gridDim.x + blockIdx.x; row < n_rows; row += gridDim.x * (i64)blockDim.x) {
    i64 length = start[row + 1] - start[row], whole = length / 4 * 4;
    double sums[4] = {0.0, 0.0, 0.0, 0.0};
    for (i64 done = 0; done < length;) {
      Run run = run_at(of, from[row] + done);
      i64 n = least(run.left, length - done);
      for (i64 k = 0; k < n; k++)
        sums[done + k < whole ? (done + k) % 4 : 0] += (double)(PLAIN)element<VALUE>(of, run.chunk, run.first + k);
      done += n;
    }
    ((double*)totals)[row] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
}

// Rows [0, n_rows) of a batch; those up to n_all are empty. `totals` (double, 0 for none) are those of its rows,
// `target` the bits of a double.
extern "C" __global__ void scatter_csr(
    i64 values, i64 value_n, i64 value_nbytes, i64 value_is_shuffled,
    i64 indices, i64 index_n, i64 index_nbytes, i64 index_is_shuffled,
    i64 value_rows, i64 index_rows, i64 starts, i64 n_rows, i64 n_all,
    i64 out_values, i64 out_indices, i64 out_indptr, i64 totals, i64 target) {
  Staged of_values = staged(values, value_n, value_nbytes, value_is_shuffled);
  Staged of_indices = staged(indices, index_n, index_nbytes, index_is_shuffled);
  const i64* value_from = (const i64*)value_rows;
  const i64* index_from = (const i64*)index_rows;
  const i64* start = (const i64*)starts;
  INDEX_OUT* indptr = (INDEX_OUT*)out_indptr;
  for (i64 row = blockIdx.x; row < n_all; row += gridDim.x) {
    i64 first = start[least(row, n_rows)], length = start[least(row + 1, n_rows)] - first;
    if (threadIdx.x == 0) {
      if (row == 0) indptr[0] = 0;
      indptr[row + 1] = (INDEX_OUT)(first + length);
    }
    OUT* to_values = (OUT*)out_values + first;
#if defined(LOG_NORMALIZE) || defined(BINARIZE)
    double scale = length ? scale_of(totals, row, target) : 1.0;
#endif
    for (i64 done = 0; done < length;) {
      Run run = run_at(of_values, value_from[row] + done);
      i64 n = least(run.left, length - done);
      for (i64 k = threadIdx.x; k < n; k += blockDim.x) {
        VALUE value = element<VALUE>(of_values, run.chunk, run.first + k);
#if defined(LOG_NORMALIZE) || defined(BINARIZE)
        to_values[done + k] = made((PLAIN)value, scale);
#else
        to_values[done + k] = converted(value);
#endif
      }
      done += n;
    }
    INDEX_OUT* to_indices = (INDEX_OUT*)out_indices + first;
    for (i64 done = 0; done < length;) {
      Run run = run_at(of_indices, index_from[row] + done);
      i64 n = least(run.left, length - done);
      for (i64 k = threadIdx.x; k < n; k += blockDim.x)
        to_indices[done + k] = (INDEX_OUT)element<INDEX>(of_indices, run.chunk, run.first + k);
      done += n;
    }
  }
}

// `lookup` (int32, 0 for none) gives a column's place among the `n_columns` wanted ones, or -1. Nothing is written
// outside of a row, whatever the column numbers are.
extern "C" __global__ void scatter_dense(
    i64 values, i64 value_n, i64 value_nbytes, i64 value_is_shuffled,
    i64 indices, i64 index_n, i64 index_nbytes, i64 index_is_shuffled,
    i64 value_rows, i64 index_rows, i64 starts, i64 n_rows, i64 unordered,
    i64 lookup, i64 n_stored, i64 n_columns, i64 out, i64 totals, i64 target) {
  Staged of_values = staged(values, value_n, value_nbytes, value_is_shuffled);
  Staged of_indices = staged(indices, index_n, index_nbytes, index_is_shuffled);
  const i64* value_from = (const i64*)value_rows;
  const i64* index_from = (const i64*)index_rows;
  const i64* start = (const i64*)starts;
  const int* place_of = (const int*)lookup;
  for (i64 row = blockIdx.x; row < n_rows; row += gridDim.x) {
    i64 length = start[row + 1] - start[row];
    OUT* to = (OUT*)out + row * n_columns;
#if defined(LOG_NORMALIZE) || defined(BINARIZE)
    double scale = scale_of(totals, row, target);
    // Where a column may occur twice, the thread that has its first element sums it up, in the order of the row.
    bool is_ordered = ((const unsigned char*)unordered)[row] == 0;
    for (i64 k = threadIdx.x; k < length; k += blockDim.x) {
      i64 column = column_at(of_indices, index_from[row] + k), place = column;
      if (column < 0 || column >= n_stored) continue;
      if (place_of != 0) place = place_of[column];
      if (place < 0 || place >= n_columns) continue;
      PLAIN value = (PLAIN)value_at(of_values, value_from[row] + k);
      if (!is_ordered) {
        i64 before = 0;
        while (before < k && column_at(of_indices, index_from[row] + before) != column) before++;
        if (before < k) continue;
        value = sum_as((PLAIN)0, value_at(of_values, value_from[row] + k));
        for (i64 j = k + 1; j < length; j++)
          if (column_at(of_indices, index_from[row] + j) == column)
            value = sum_as(value, value_at(of_values, value_from[row] + j));
      }
      to[place] = made(value, scale);
    }
#else
    // A column that occurs twice is summed up in the order of the row: by one thread.
    bool is_alone = ((const unsigned char*)unordered)[row] != 0;
    if (is_alone && threadIdx.x > 0) continue;
    i64 step = is_alone ? 1 : blockDim.x;
    for (i64 done = 0; done < length;) {
      Run of_value = run_at(of_values, value_from[row] + done);
      Run of_index = run_at(of_indices, index_from[row] + done);
      i64 n = least(least(of_value.left, of_index.left), length - done);
      for (i64 k = is_alone ? 0 : threadIdx.x; k < n; k += step) {
        i64 column = (i64)element<INDEX>(of_indices, of_index.chunk, of_index.first + k);
        if (column < 0 || column >= n_stored) continue;
        if (place_of != 0) column = place_of[column];
        if (column < 0 || column >= n_columns) continue;
        VALUE value = element<VALUE>(of_values, of_value.chunk, of_value.first + k);
        to[column] = sum(is_alone ? to[column] : (OUT)0, value);
      }
      done += n;
    }
#endif
  }
}
