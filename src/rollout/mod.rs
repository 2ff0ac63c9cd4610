//! Plan, phase, event, effect and the one transition function. Pure.
