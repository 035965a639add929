// Which lane and register hold which element of a matrix: mma.sync, wgmma, ldmatrix and stmatrix.
#pragma once

namespace flashmla::emulator {

/// An element's place in a matrix. For operand A `row` is m and `column` is k; for B they are k and n; for
/// accumulators m and n.
struct Element {
  int row = 0;
  int column = 0;

  friend constexpr bool operator==(const Element&, const Element&) = default;
};

/// Operand A of mma.sync m16n8k16 (8 elements a lane) and m16n8k8 (the first 4), 16-bit types. Elements 2r
/// and 2r + 1 are the lower and upper half of register r. Source: PTX ISA, "Matrix Fragments for mma.m16n8k16
/// with floating point type", and m16n8k8.
constexpr Element mma_a_element(int lane, int element) {
  const int lower_half = (element / 2) % 2;
  return {lane / 4 + 8 * lower_half, 2 * (lane % 4) + element % 2 + 8 * (element / 4)};
}

/// Operand B of mma.sync m16n8k16 (4 elements a lane) and m16n8k8 (the first 2), 16-bit types.
constexpr Element mma_b_element(int lane, int element) {
  return {2 * (lane % 4) + element % 2 + 8 * (element / 2), lane / 4};
}

/// Accumulators of mma.sync m16n8: 4 f32 a lane.
constexpr Element mma_accumulator_element(int lane, int element) {
  return {lane / 4 + 8 * (element / 2), 2 * (lane % 4) + element % 2};
}

/// Operand A of wgmma m64nNk16 in registers: 8 elements a thread; `thread` counts in the warpgroup.
/// Source: PTX ISA, "Matrix Fragments for wgmma.mma_async.m64nNk16".
constexpr Element wgmma_a_element(int thread, int element) {
  const Element in_warp = mma_a_element(thread % 32, element);
  return {16 * (thread / 32) + in_warp.row, in_warp.column};
}

/// Accumulators of wgmma m64nN: N / 2 f32 a thread; `thread` counts in the warpgroup.
constexpr Element wgmma_accumulator_element(int thread, int element) {
  const Element in_warp = mma_accumulator_element(thread % 32, element % 4);
  return {16 * (thread / 32) + in_warp.row, 8 * (element / 4) + in_warp.column};
}

/// The lane whose address ldmatrix and stmatrix take for `row` of 8x8 matrix number `matrix`. A row is 16
/// bytes, aligned to 16.
constexpr int matrix_address_lane(int matrix, int row) { return 8 * matrix + row; }

/// The element of its 8x8 matrix that ldmatrix puts into, and stmatrix takes from, half `half` (0 is the
/// lower) of a lane's register; register r belongs to matrix r. With `.trans` rows in memory are columns in
/// registers: the element returned is counted in memory. Source: PTX ISA, "Warp-level matrix load
/// instruction: ldmatrix".
constexpr Element matrix_element(int lane, int half, bool transposed) {
  const Element in_registers{lane / 4, 2 * (lane % 4) + half};
  return transposed ? Element{in_registers.column, in_registers.row} : in_registers;
}

}  // namespace flashmla::emulator
