#pragma once
#include "segship/errors.hpp"
