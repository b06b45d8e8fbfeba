// How do the rows of a window become batches on a device?
//
// A window lies in the memory of the device as it was stored: `values` and `indices` in their narrow types, row behind
// row, or chunk behind chunk with each chunk's bytes shuffled. Every row of a batch knows where it begins there.
//
// 1. `check_rows` says which rows do not ascend, and whether an index is out of range.
// 2. `scatter_csr` copies rows to their places in a CSR batch, and widens them.
// 3. `scatter_dense` writes rows into a dense batch that was set to zero.
// 4. `sum_rows` sums up rows for the other two, where they are to normalise values.
//
// All parameters are 64-bit integers: addresses and sizes. A block of threads works on a row; no thread waits for
// another. The types are macros:
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

__device__ inline i64 column_at(const Staged& of, i64 position) {
  Run run = run_at(of, position);
  return (i64)element<INDEX>(of, run.chunk, run.first);
}

__device__ inline VALUE value_at(const Staged& of, i64 position) {
  Run run = run_at(of, position);
  return element<VALUE>(of, run.chunk, run.first);
}

__device__ inline i64 least(i64 a, i64 b) { return a < b ? a : b; }

// --- kernels ---------------------------------------------------------------------------------------------------------

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
