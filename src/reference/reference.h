// The reference backend: every operation in float64, written to be read; the truth for every test.
//
// Arguments have been checked before `run` is called; the values inside of tensors have not, and none of
// them makes a function here read or write outside of a tensor, or read a token that is not visible. A
// visible NaN makes the row's outputs NaN. Results are rounded once, from double to the type of the output.
#pragma once

#include <cstddef>

#include "flashmla/execution.h"
#include "flashmla/operations.h"

namespace flashmla::reference {

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

/// A given schedule is ignored: here it could only change the order of work.
void run(const DenseDecode& op, const Execution& on);
void run(const SparseDecode& op, const Execution& on);
void run(const SparsePrefill& op, const Execution& on);
void run(const MhaForward& op, const Execution& on);
void run(const MhaBackward& op, const Execution& on);
void run(const QuantizeKv& op, const Execution& on);
void run(const DequantizeKv& op, const Execution& on);
/// On one thread: of tokens with the same slot the last one must stay.
void run(const AppendKv& op, const Execution& on);
void run(const MergeStates& op, const Execution& on);
void run(const MakeSchedule& op, const Execution& on);

}  // namespace flashmla::reference
