#pragma once
#include "segship/array.hpp"
