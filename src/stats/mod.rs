//! Numbers about numbers: histograms, proportions. Pure.
