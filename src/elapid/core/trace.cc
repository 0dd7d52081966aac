#include "elapid/core/trace.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <cxxabi.h>
#include <iomanip>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <typeindex>
#include <vector>

namespace elapid {
namespace {

struct Total {
  int64_t calls = 0;
  double milliseconds = 0;
};

struct Totals {
  std::mutex mutex;
  std::map<std::type_index, std::pair<std::string, Total>> by_args;
};

Totals& totals() {
  static Totals all;
  return all;
}

}  // namespace

// "elapid::MatmulForward" → "MatmulForward"
std::string kernel_name(const std::type_info& args) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> name(abi::__cxa_demangle(args.name(), nullptr, nullptr, &status),
                                                    std::free);
  const std::string full = status == 0 ? name.get() : args.name();
  const size_t colon = full.rfind(':');
  return colon == std::string::npos ? full : full.substr(colon + 1);
}

bool tracing() {
  static const bool on = [] {
    const char* value = std::getenv("ELAPID_TRACE");
    return value != nullptr && *value != '\0' && std::strcmp(value, "0") != 0;
  }();
  return on;
}

void trace_launch(const std::type_info& args, std::chrono::nanoseconds time) {
  const std::lock_guard lock(totals().mutex);
  auto& [name, total] = totals().by_args[std::type_index(args)];
  if (total.calls == 0) name = kernel_name(args);
  ++total.calls;
  total.milliseconds += std::chrono::duration<double, std::milli>(time).count();
}

std::string trace_report() {
  const std::lock_guard lock(totals().mutex);
  std::vector<std::pair<std::string, Total>> rows;
  double all = 0;
  for (const auto& [type, row] : totals().by_args) {
    rows.push_back(row);
    all += row.second.milliseconds;
  }
  std::sort(rows.begin(), rows.end(),
            [](const auto& a, const auto& b) { return a.second.milliseconds > b.second.milliseconds; });
  std::ostringstream out;
  out << std::fixed;
  for (const auto& [name, total] : rows) {
    out << std::left << std::setw(24) << name << std::right << std::setw(10) << total.calls << " calls" << std::setw(12)
        << std::setprecision(2) << total.milliseconds << " ms" << std::setw(8) << std::setprecision(1)
        << (all > 0 ? 100 * total.milliseconds / all : 0) << " %\n";
  }
  return std::move(out).str();
}

}  // namespace elapid
