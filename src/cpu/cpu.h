// The CPU backend: every operation, vectorized and threaded.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "flashmla/execution.h"
#include "flashmla/operations.h"

namespace flashmla::cpu {

/// Name of the instruction set that the kernels use on this machine for bf16: `amx_bf16`, `avx512_bf16`,
/// `avx512`, `avx2` or `portable`. Throws Error if FLASHMLA_CPU_ISA names none that the processor has.
std::string_view instruction_set();

std::size_t workspace_bytes(const DenseDecode& op, const Execution& on);
std::size_t workspace_bytes(const SparseDecode& op, const Execution& on);
std::size_t workspace_bytes(const SparsePrefill& op, const Execution& on);
std::size_t workspace_bytes(const MhaForward& op, const Execution& on);
std::size_t workspace_bytes(const MhaBackward& op, const Execution& on);
std::size_t workspace_bytes(const QuantizeKv& op, const Execution& on);
std::size_t workspace_bytes(const DequantizeKv& op, const Execution& on);
std::size_t workspace_bytes(const AppendKv& op, const Execution& on);
std::size_t workspace_bytes(const MergeStates& op, const Execution& on);
std::size_t workspace_bytes(const MakeSchedule& op, const Execution& on);

void run(const DenseDecode& op, const Execution& on);
void run(const SparseDecode& op, const Execution& on);
void run(const SparsePrefill& op, const Execution& on);
void run(const MhaForward& op, const Execution& on);
void run(const MhaBackward& op, const Execution& on);
void run(const QuantizeKv& op, const Execution& on);
void run(const DequantizeKv& op, const Execution& on);
void run(const AppendKv& op, const Execution& on);
void run(const MergeStates& op, const Execution& on);
void run(const MakeSchedule& op, const Execution& on);

}  // namespace flashmla::cpu
