//! Measurement -> outcome -> metric phase -> run phase. Pure.
//!
//! The rules are Argo Rollouts' own, restated: what a finished measurement means (`condition`), how measurements add up
//! to a metric's phase and metrics to a run's (`run`), which specs are refused and why (`validate`), and what
//! `{{args.x}}` stands for (`args`). Nobody here asks a provider or a clock: `control::observe` measures, and says so.

mod alarm;
mod args;
mod condition;
mod json_path;
mod judge;
mod mann_whitney;
mod outcome;
mod run;
#[cfg(test)]
mod simulated;
#[cfg(test)]
mod simulation;
mod spec;
mod threshold;
mod validate;

pub use alarm::{Alarm, AlarmRule, AlarmWatch};
pub use args::{ArgSpec, ArgValue, Args, BadArgs};
pub use condition::{BadCondition, Conditions};
pub use json_path::JsonPath;
pub use judge::{
    Advice, Batch, ClientErrorsReport, Eta, Fault, Judge, JudgeConfig, JudgeReport, Piece, TestReport,
    against_itself, record, replay,
};
pub use mann_whitney::{Compared, Direction, MOST_SAMPLES, MannWhitney};
pub use outcome::{Measurement, Outcome, RunPhase};
pub use run::{Ignored, MetricState, Run};
pub use spec::{
    MetricSpec, OnError, OnNoData, PrometheusQuery, Provider, SerinMetric, SerinQuery, Template, WebQuery,
};
pub use threshold::Threshold;
pub use validate::{BadMetric, Context, validate, validate_all};
