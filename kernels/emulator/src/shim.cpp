#include "shim.h"

__thread emulator::Coordinates emulator::here;

extern "C" emulator::Coordinates* emulator_coordinates() { return &emulator::here; }
