#pragma once

// Template text → Template, with Jinja's grammar and the tags that chat templates have: no inheritance, no includes.

#include "elapid/text/jinja/ast.h"

#include <string_view>

namespace elapid::jinja {

// Throws SyntaxError (see lexer.h).
Template parse(std::string_view text);

}  // namespace elapid::jinja
