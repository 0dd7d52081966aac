#pragma once

// What the commands write: results to standard output, everything else to standard error.

#include <chrono>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace elapid::cli {

// Keeps its keys in the order of insertion.
using OrderedJson = nlohmann::ordered_json;

// The reader of standard output has gone: the program ends, quietly and without success.
struct ClosedPipe {};

// Standard output, at once; ClosedPipe when nobody reads it, an Error when it cannot be written.
void print(std::string_view text);
// One object, one line. Strings that are not valid UTF-8 get U+FFFD.
void print_json(const OrderedJson& json);

// Standard error, one line.
void note(std::string_view text);

// Control characters escaped: an error is one line whatever it quotes.
std::string one_line(std::string_view text);

// printf for a double.
std::string format(const char* pattern, double value);

// The most physical memory this process has had, in MiB.
double peak_memory_mib();

class Stopwatch {
 public:
  [[nodiscard]] double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// A bar on standard error for work that takes over two seconds, and only on a terminal.
class Progress {
 public:
  Progress(std::string what, int64_t total);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void update(int64_t done);

 private:
  std::string what_;
  int64_t total_;
  Stopwatch clock_;
  bool terminal_, shown_ = false;
  double next_ = 2;  // seconds
};

}  // namespace elapid::cli
