#pragma once

// Where the time goes: with ELAPID_TRACE=1 in the environment every kernel launch is timed and counted by name. The
// library only collects; the command line prints the report when a command ends.

#include <chrono>
#include <string>
#include <typeinfo>

namespace elapid {

// Whether ELAPID_TRACE was set to something but 0 when first asked.
bool tracing();

// "MatmulForward", of the type of a kernel's arguments.
std::string kernel_name(const std::type_info& args);

// One launch of the kernel that takes `args`.
void trace_launch(const std::type_info& args, std::chrono::nanoseconds time);

// A table of kernels by time: calls, milliseconds, share. Empty when nothing was launched.
std::string trace_report();

}  // namespace elapid
