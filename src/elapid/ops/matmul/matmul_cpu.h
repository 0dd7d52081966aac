#pragma once

// What the kernels of products share. Only *_cpu.cc and *_amx.cc files include this header; as cpu/simd.h, all of it
// has internal linkage.

#include "elapid/cpu/simd.h"
#include "elapid/ops/matmul/grouped_matmul.h"
#include "elapid/ops/matmul/matmul.h"

namespace elapid {
namespace {

// What comes after the sums of row r for one block of outputs: bias, alpha, add. Args is MatmulForward or one like it.
template <class Args>
ELAPID_INLINE void finish_row(const Args& a, int64_t r, int64_t block, const F32& sums) {
  const int64_t column = block * kPackBlock, n = a.y.cols() - column;
  const F32 bias = a.bias ? load(a.bias.template ptr<float>() + column, n) : zero();
  F32 y = broadcast(a.alpha) * (sums + bias);
  if (a.add) y = y + load(a.add.template row<float>(r) + column, n);
  store(a.y.template row<float>(r) + column, y, n);
}

// How a product is cut into tasks: nearly equal ones of whole tiles.
struct Cut {
  int64_t row_tasks, task_rows, block_tasks, task_blocks;

  ELAPID_INLINE int64_t tasks() const { return row_tasks * block_tasks; }
};

// Calls body(row, row_end, block, block_end) for task i of a cut, unless that is empty. Neighbouring tasks share
// weights: they come from memory once.
template <class Body>
ELAPID_INLINE void for_task(const Cut& c, int64_t i, int64_t rows, int64_t blocks, const Body& body) {
  const int64_t row = i % c.row_tasks * c.task_rows, block = i / c.row_tasks * c.task_blocks;
  const int64_t row_end = row + c.task_rows < rows ? row + c.task_rows : rows;
  const int64_t block_end = block + c.task_blocks < blocks ? block + c.task_blocks : blocks;
  if (row < row_end) body(row, row_end, block, block_end);
}

// All groups' tasks in one job: a group of few rows has too few to feed every thread. cut_of(rows) cuts a group;
// body(g, cut, i) is task i of group g.
template <class CutOf, class Body>
ELAPID_INLINE void for_grouped_tasks(ThreadPool& threads, const GroupedMatmulForward& a, const CutOf& cut_of,
                                     const Body& body) {
  const int64_t groups = a.offsets.size() - 1;
  const int64_t* offsets = a.offsets.ptr<int64_t>();
  int64_t* first_task = a.first_task.ptr<int64_t>();
  int64_t tasks = 0;
  for (int64_t g = 0; g < groups; ++g) {
    first_task[g] = tasks;
    tasks += cut_of(offsets[g + 1] - offsets[g]).tasks();
  }
  first_task[groups] = tasks;
  parallel_for(threads, tasks, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      int64_t low = 0, high = groups;  // first_task[low] ≤ i < first_task[high]
      while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        (first_task[middle] <= i ? low : high) = middle;
      }
      body(low, cut_of(offsets[low + 1] - offsets[low]), i - first_task[low]);
    }
  });
}

// x rounded to bf16, as floats, with `columns` ≥ x's of which those beyond x's own are zero; in `room`.
ELAPID_INLINE Tensor rounded_floats(Cpu cpu, const Tensor& x, int64_t columns, const Tensor& room) {
  const Tensor rounded(room.data, DType::f32, {x.rows(), columns});
  parallel_for(cpu.threads, x.rows(), (int64_t{1} << 15) / columns + 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t c = 0; c < columns; c += kLanes) {
        const int64_t n = x.cols() - c, width = columns - c;
        store(rounded.row<float>(r) + c, round_to_bf16(load(x.row<float>(r) + c, n > 0 ? n : 0)), width);
      }
    }
  });
  return rounded;
}

}  // namespace
}  // namespace elapid
