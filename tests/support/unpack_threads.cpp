// Runs kernels whose threads wait for each other with threads that really run at once, under ThreadSanitizer:
// unpack_threads THREADS FILE, whose int64 are numbers of bytes and blocks, then sources, descriptors and bases, and whose
// bytes are the uint16 that are expected, and the packed ones. Ends with 0 if they come out, and if they are summed up.

#include <pthread.h>

#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#define __global__
#define __device__ static
#define __shared__ static
#define VALUE unsigned short
struct Index {
  unsigned x;
};
static thread_local Index blockIdx, threadIdx, blockDim, gridDim;
static pthread_barrier_t barrier;
static void __syncthreads() { pthread_barrier_wait(&barrier); }

#include KERNELS

template <typename T>
static std::vector<T> take(FILE* file, i64 n) {
  std::vector<T> found(n);
  if ((i64)std::fread(found.data(), sizeof(T), n, file) != n) std::exit(3);
  return found;
}

int main(int, char** arguments) {
  unsigned n_threads = std::atoi(arguments[1]);
  FILE* file = std::fopen(arguments[2], "rb");
  std::vector<i64> sizes = take<i64>(file, 2);
  i64 n = sizes[1];
  std::vector<i64> sources = take<i64>(file, n), descriptors = take<i64>(file, n), bases = take<i64>(file, n);
  std::vector<unsigned short> expected = take<unsigned short>(file, 256 * n), found(256 * n);
  std::vector<unsigned char> bytes = take<unsigned char>(file, sizes[0]);
  std::fclose(file);
  i64 broken = 0, are_differences = 1;
  std::vector<unsigned short> summed = expected, sums = expected;
  for (i64 i = 1; i < 256 * n; i++) sums[i] = (unsigned short)(sums[i - 1] + sums[i]);
  pthread_barrier_init(&barrier, nullptr, n_threads);
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < n_threads; t++)
    threads.emplace_back([&, t] {
      gridDim.x = 1;
      blockDim.x = n_threads;
      threadIdx.x = t;
      unpack_blocks(
          (i64)bytes.data(), sizes[0], (i64)sources.data(), (i64)descriptors.data(), (i64)bases.data(), n,
          (i64)found.data(), (i64)&broken);
      undo_differences((i64)summed.data(), 256 * n, 512 * n, 0, (i64)&are_differences, 1);
    });
  for (std::thread& thread : threads) thread.join();
  return broken != 0 || found != expected || summed != sums;
}
