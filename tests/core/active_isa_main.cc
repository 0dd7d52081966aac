// Prints the instruction-set level that this process would run at, or the error.

#include "elapid/core/error.h"
#include "elapid/core/isa.h"

#include <iostream>

int main() {
  try {
    std::cout << elapid::name_of(elapid::active_isa()) << "\n";
    return 0;
  } catch (const elapid::Error& error) {
    std::cout << error.what() << "\n";
    return 1;
  }
}
