//! Measurement -> outcome -> metric phase -> run phase. Pure.
