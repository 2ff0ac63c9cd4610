//! `strategy`: how a new version is brought in. Argo's `steps` paste unchanged.

use super::blind;
use super::cx::Cx;
use super::decode::Located;
use super::holdback::{self, HoldbackConfig};
use super::judge_names;
use super::problem::did_you_mean;
use super::template::CompiledTemplate;
use crate::analysis::{Args, Context, JudgeConfig, MetricSpec, Provider, Template};
use crate::model::{Span, Weight};
use crate::rollout::{
    AnalysisRef, Background, BlueGreen, Canary, Experiment, HeaderRoute, MirrorRoute, Pause, Plan,
    RollbackWindow, Step, StepArg, Strategy, TemplateRef, UntilEvidence,
};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// Exactly one.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StrategyConfig {
    canary: Option<CanaryConfig>,
    blue_green: Option<BlueGreenConfig>,
    immediate: Option<ImmediateConfig>,
}

#[derive(Debug, Deserialize)]
struct ImmediateConfig {}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CanaryConfig {
    /// In order; finishing them promotes. Absent: straight to promotion once endpoints are ready.
    #[serde(default)]
    steps: Vec<Located<StepConfig>>,
    /// Instead of `steps`: the ready-made ones, at the pace of the evidence.
    auto: Option<AutoConfig>,
    /// Runs beside the steps. Absent: only what the steps say.
    analysis: Option<BackgroundConfig>,
    /// Absent: nothing; the last step promotes.
    holdback: Option<HoldbackConfig>,
    /// Argo's; nothing in it has an effect here.
    traffic_routing: Option<serde_json::Value>,
}

#[derive(Debug, Default, Deserialize)]
struct AutoConfig {
    /// Absent: 1, 5, 25, 50.
    weights: Option<Vec<Located<Weight>>>,
    /// How long a weight may wait for evidence before a person must decide. Absent: as long as it takes.
    max: Option<Span>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct BackgroundConfig {
    /// At least one.
    #[serde(default)]
    templates: Vec<Located<TemplateRefConfig>>,
    /// Over the templates' defaults.
    #[serde(default)]
    args: Vec<Located<StepArgConfig>>,
    /// The index of the step it starts with. Absent: 0.
    starting_step: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AnalysisConfig {
    /// At least one.
    #[serde(default)]
    templates: Vec<Located<TemplateRefConfig>>,
    /// Over the templates' defaults.
    #[serde(default)]
    args: Vec<Located<StepArgConfig>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TemplateRefConfig {
    /// A name of `analysisTemplates`.
    template_name: String,
}

#[derive(Debug, Deserialize)]
struct StepArgConfig {
    /// What stands between `{{args.` and `}}`.
    name: String,
    /// Its value.
    value: String,
}

/// Exactly one.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StepConfig {
    set_weight: Option<Weight>,
    pause: Option<PauseConfig>,
    analysis: Option<AnalysisConfig>,
    experiment: Option<ExperimentConfig>,
    set_header_route: Option<HeaderRouteConfig>,
    set_mirror_route: Option<MirrorRouteConfig>,
    /// Argo's; moves pods only.
    set_canary_scale: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PauseConfig {
    /// Absent: until somebody promotes.
    duration: Option<Span>,
    /// Instead of `duration`: until the judge has learned enough.
    until_evidence: Option<UntilEvidenceConfig>,
}

#[derive(Debug, Deserialize)]
struct UntilEvidenceConfig {
    /// Then a person must decide. Absent: as long as it takes.
    max: Option<Span>,
}

#[derive(Debug, Deserialize)]
struct ExperimentConfig {
    /// Absent: until its analyses end.
    duration: Option<Span>,
    /// Argo starts pods from these; nothing in them has an effect here.
    #[serde(default)]
    #[allow(
        dead_code,
        reason = "accepted so that the step pastes; `serve` refuses experiments as a whole"
    )]
    templates: Vec<serde_json::Value>,
    /// What is measured meanwhile.
    #[serde(default)]
    analyses: Vec<Located<ExperimentAnalysisConfig>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExperimentAnalysisConfig {
    #[allow(dead_code, reason = "Argo wants a name; here the template's name is enough")]
    name: Option<String>,
    template_name: String,
    #[serde(default)]
    args: Vec<Located<StepArgConfig>>,
}

#[derive(Debug, Deserialize)]
struct HeaderRouteConfig {
    /// Setting a route again replaces it.
    name: String,
    /// Absent or empty: the route is removed.
    #[serde(default, rename = "match")]
    matches: Vec<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
struct MirrorRouteConfig {
    /// Setting a route again replaces it.
    name: String,
    /// Absent: all.
    percentage: Option<Weight>,
    /// Absent or empty: the route is removed.
    #[serde(default, rename = "match")]
    matches: Vec<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct BlueGreenConfig {
    /// Absent: true.
    auto_promotion_enabled: Option<bool>,
    /// Absent: at once. Has no meaning when `autoPromotionEnabled` is false.
    auto_promotion_seconds: Option<Span>,
    /// Absent: none.
    pre_promotion_analysis: Option<AnalysisConfig>,
    /// Absent: none.
    post_promotion_analysis: Option<AnalysisConfig>,
    /// Absent: 30s.
    scale_down_delay_seconds: Option<Span>,
    /// Absent: all.
    scale_down_delay_revision_limit: Option<u32>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct RollbackWindowConfig {
    /// Strictly fewer versions than this between the target and stable.
    pub(super) revisions: u32,
}

/// The templates of all files, by name.
pub(super) type Templates = BTreeMap<String, CompiledTemplate>;

/// What compiling a strategy learns besides the plan.
#[derive(Debug, Default)]
pub(super) struct Uses {
    /// Each template named, and where.
    pub(super) templates: BTreeSet<String>,
    /// Those that must end by themselves.
    pub(super) bounded: BTreeSet<String>,
    /// What `serve` cannot do yet: path and what.
    pub(super) not_yet: Vec<(String, String)>,
    /// A template could not be read: an unknown name may be its.
    pub(super) some_unreadable: bool,
}

/// The name of the built-in template: the judge with its defaults.
pub const BUILT_IN_GATE: &str = "serin-judge";

/// The judge of a service without a strategy, and of every plan that waits for evidence and names no judge of its own.
pub fn built_in_gate() -> Template {
    let judge = Provider::Judge(JudgeConfig::default());
    Template {
        name: BUILT_IN_GATE.to_owned(),
        args: Vec::new(),
        metrics: vec![MetricSpec::named(BUILT_IN_GATE, judge)],
    }
}

/// The steps of `auto`: each weight until the evidence suffices for the next.
fn auto_steps(weights: &[Weight], max: Option<Span>) -> Vec<Step> {
    let pause = Pause {
        duration: None,
        until_evidence: Some(UntilEvidence { max }),
    };
    let steps = weights.iter();
    steps
        .flat_map(|weight| [Step::SetWeight(*weight), Step::Pause(pause)])
        .collect()
}

/// The plan of a service without a strategy: 1, 5, 25, 50 %, at the pace of the evidence.
pub fn default_steps() -> Vec<Step> {
    auto_steps(&[1, 5, 25, 50].map(Weight::percent), None)
}

/// A plan that waits for evidence or bakes has somebody who watches: the built-in judge, when the background analysis names
/// none. Whether it was added.
pub fn ensure_judge(canary: &mut Canary, is_judge: impl Fn(&str) -> bool) -> bool {
    let needs_it = |step: &Step| step.waits_for_evidence() || matches!(step, Step::Bake(_));
    let Some(first) = canary.steps.iter().position(needs_it) else {
        return false;
    };
    let background = canary.background.get_or_insert_with(Background::default);
    let mut named = background.analysis.templates.iter();
    if named.any(|reference| reference.template_name == BUILT_IN_GATE || is_judge(&reference.template_name)) {
        return false;
    }
    background.starting_step = background.starting_step.min(first);
    background.analysis.templates.push(TemplateRef {
        template_name: BUILT_IN_GATE.to_owned(),
    });
    true
}

/// What a plan takes from the rest of its service.
#[derive(Debug, Clone, Copy)]
pub(super) struct Around {
    pub(super) rollback_window: Option<RollbackWindow>,
    pub(super) progress_deadline: Span,
}

/// The plan of a service.
pub(super) fn compile(
    config: Option<&StrategyConfig>,
    path: &str,
    around: Around,
    templates: &Templates,
    uses: &mut Uses,
    cx: &mut Cx,
) -> Plan {
    let strategy = match config {
        None => {
            let mut canary = Canary {
                steps: default_steps(),
                background: None,
            };
            ensure_judge(&mut canary, |_| false);
            uses.templates.insert(BUILT_IN_GATE.to_owned());
            Strategy::Canary(canary)
        }
        Some(StrategyConfig {
            canary: Some(config),
            blue_green: None,
            immediate: None,
        }) => canary(config, &format!("{path}.canary"), templates, uses, cx),
        Some(StrategyConfig {
            canary: None,
            blue_green: Some(config),
            immediate: None,
        }) => {
            let path = format!("{path}.blueGreen");
            uses.not_yet.push((path.clone(), "blueGreen".to_owned()));
            blue_green(config, &path, templates, uses, cx)
        }
        Some(StrategyConfig {
            canary: None,
            blue_green: None,
            immediate: Some(ImmediateConfig {}),
        }) => Strategy::Immediate,
        Some(_) => {
            cx.error(
                path,
                "exactly one of canary, blueGreen and immediate is needed",
                "remove strategy for the default plan (1, 5, 25, 50 %, at the pace of the evidence)",
            );
            Strategy::Immediate
        }
    };
    Plan {
        strategy,
        rollback_window: around.rollback_window,
        progress_deadline: Some(around.progress_deadline),
        require_evidence: true,
    }
}

fn canary(
    config: &CanaryConfig,
    path: &str,
    templates: &Templates,
    uses: &mut Uses,
    cx: &mut Cx,
) -> Strategy {
    if let Some(routing) = &config.traffic_routing {
        let path = format!("{path}.trafficRouting");
        match routing
            .get("maxTrafficWeight")
            .and_then(serde_json::Value::as_u64)
        {
            None | Some(100) => cx.warn(&path, "Serin is the router itself: this has no effect here", ""),
            Some(most) => cx.error(
                &format!("{path}.maxTrafficWeight"),
                format!("weights are percentages here, not parts of {most}"),
                "remove it and write each weight as a percentage (0.1) or a fraction (\"1/1000\")",
            ),
        }
    }
    let mut steps = match &config.auto {
        Some(auto) => {
            if !config.steps.is_empty() {
                cx.error(path, "auto and steps exclude each other", "keep one of them");
            }
            auto_steps(&weights(auto, &format!("{path}.auto"), cx), auto.max)
        }
        None => steps(&config.steps, templates, uses, cx),
    };
    let bake = config
        .holdback
        .and_then(|holdback| holdback.compile(&format!("{path}.holdback"), cx));
    holdback::apply(&mut steps, bake, &format!("{path}.steps"), cx);
    let background = config.analysis.as_ref().map(|background| {
        let path = format!("{path}.analysis");
        let starting_step = background.starting_step.unwrap_or(0);
        if starting_step > 0 && starting_step >= steps.len() {
            cx.error(
                &format!("{path}.startingStep"),
                format!(
                    "step {starting_step} is not there: the steps are 0 to {}",
                    steps.len().saturating_sub(1)
                ),
                "write the place of a step, from 0",
            );
        }
        let analysis = AnalysisRef {
            templates: references(&background.templates, &path, templates, uses, cx),
            args: arguments(&background.args),
        };
        check_analysis(&analysis, &path, templates, Context::Background, uses, cx);
        Background {
            analysis,
            starting_step,
        }
    });
    let mut canary = Canary { steps, background };
    let is_judge = |name: &str| {
        templates
            .get(name)
            .is_some_and(|compiled| compiled.template.has_judge())
    };
    if ensure_judge(&mut canary, is_judge) {
        uses.templates.insert(BUILT_IN_GATE.to_owned());
    } else if let Some(background) = &canary.background
        && let Some(step) = canary
            .steps
            .iter()
            .take(background.starting_step)
            .position(Step::waits_for_evidence)
    {
        cx.error(
            &format!("{path}.analysis.startingStep"),
            format!(
                "step {step} waits for evidence that nobody gathers before step {}",
                background.starting_step
            ),
            format!("write startingStep: {step} or less"),
        );
    }
    let known = |name: &str| templates.get(name).map(|compiled| &compiled.template);
    for unlike in judge_names::unlike(&canary, known) {
        let step = unlike.step.and_then(|step| config.steps.get(step));
        let place = step.map_or(format!("{path}.analysis"), |step| {
            format!("{}.analysis", step.path)
        });
        cx.error(&place, unlike.what, unlike.hint);
    }
    for blind in blind::blind(&canary, is_judge) {
        let step = blind.step.and_then(|step| config.steps.get(step));
        let place = step.map_or(path.to_owned(), |step| step.path.clone());
        cx.error(&place, blind.what, blind.hint);
    }
    Strategy::Canary(canary)
}

/// The weights of `auto`, ascending and below everything.
fn weights(auto: &AutoConfig, path: &str, cx: &mut Cx) -> Vec<Weight> {
    let Some(weights) = &auto.weights else {
        return [1, 5, 25, 50].map(Weight::percent).to_vec();
    };
    let values: Vec<Weight> = weights.iter().map(|weight| weight.value).collect();
    let ascending = values.windows(2).all(|pair| pair[0] < pair[1]);
    if values.is_empty() || !ascending || values.iter().any(|weight| weight.is_zero() || weight.is_full()) {
        cx.error(
            &format!("{path}.weights"),
            "the weights must ascend, between 0 and 100",
            "write for example [1, 5, 25, 50]; 100 comes by itself",
        );
    }
    values
}

/// Every step that can be understood.
pub(super) fn steps(
    configs: &[Located<StepConfig>],
    templates: &Templates,
    uses: &mut Uses,
    cx: &mut Cx,
) -> Vec<Step> {
    configs
        .iter()
        .filter_map(|config| step(&config.value, &config.path, templates, uses, cx))
        .collect()
}

fn step(
    config: &StepConfig,
    path: &str,
    templates: &Templates,
    uses: &mut Uses,
    cx: &mut Cx,
) -> Option<Step> {
    let mut found = Vec::new();
    if let Some(weight) = config.set_weight {
        found.push(Step::SetWeight(weight));
    }
    if let Some(pause) = &config.pause {
        if pause.duration.is_some() && pause.until_evidence.is_some() {
            cx.error(
                &format!("{path}.pause"),
                "duration and untilEvidence exclude each other",
                "keep one of them; untilEvidence: {max: 30m} ends the wait as well",
            );
        }
        found.push(Step::Pause(Pause {
            duration: pause.duration,
            until_evidence: pause
                .until_evidence
                .as_ref()
                .map(|until| UntilEvidence { max: until.max }),
        }));
    }
    if let Some(analysis) = &config.analysis {
        found.push(Step::Analysis(inline(
            analysis,
            &format!("{path}.analysis"),
            templates,
            Context::Inline,
            uses,
            cx,
        )));
    }
    if let Some(experiment) = &config.experiment {
        let path = format!("{path}.experiment");
        uses.not_yet.push((path.clone(), "experiment steps".to_owned()));
        found.push(Step::Experiment(compile_experiment(
            experiment, &path, templates, uses, cx,
        )));
    }
    if let Some(route) = &config.set_header_route {
        uses.not_yet
            .push((format!("{path}.setHeaderRoute"), "setHeaderRoute".to_owned()));
        found.push(Step::SetHeaderRoute(HeaderRoute {
            name: route.name.clone(),
            matches: route.matches.clone(),
        }));
    }
    if let Some(route) = &config.set_mirror_route {
        uses.not_yet
            .push((format!("{path}.setMirrorRoute"), "setMirrorRoute".to_owned()));
        found.push(Step::SetMirrorRoute(MirrorRoute {
            name: route.name.clone(),
            percentage: route.percentage,
            matches: route.matches.clone(),
        }));
    }
    if config.set_canary_scale.is_some() {
        cx.warn(
            &format!("{path}.setCanaryScale"),
            "this moves pods in Kubernetes and has no effect here",
            "the step is passed at once",
        );
        found.push(Step::Skipped("setCanaryScale".to_owned()));
    }
    if found.len() > 1 {
        cx.error(path, "a step does one thing", "make a step (`- …`) of each key");
    } else if found.is_empty() {
        cx.error(
            path,
            "the step is empty",
            "write for example setWeight: 25, or pause: {} to wait for a person",
        );
    }
    found.into_iter().next()
}

fn inline(
    config: &AnalysisConfig,
    path: &str,
    templates: &Templates,
    context: Context,
    uses: &mut Uses,
    cx: &mut Cx,
) -> AnalysisRef {
    let analysis = AnalysisRef {
        templates: references(&config.templates, path, templates, uses, cx),
        args: arguments(&config.args),
    };
    check_analysis(&analysis, path, templates, context, uses, cx);
    analysis
}

fn compile_experiment(
    config: &ExperimentConfig,
    path: &str,
    templates: &Templates,
    uses: &mut Uses,
    cx: &mut Cx,
) -> Experiment {
    let named = config.analyses.iter().map(|analysis| Located {
        path: analysis.path.clone(),
        value: TemplateRefConfig {
            template_name: analysis.value.template_name.clone(),
        },
    });
    let named: Vec<_> = named.collect();
    let analysis = AnalysisRef {
        templates: if named.is_empty() {
            Vec::new()
        } else {
            references(&named, path, templates, uses, cx)
        },
        args: config
            .analyses
            .iter()
            .flat_map(|analysis| arguments(&analysis.value.args))
            .collect(),
    };
    let context = if config.duration.is_some() {
        Context::Background
    } else {
        Context::Inline
    };
    check_analysis(&analysis, path, templates, context, uses, cx);
    Experiment {
        duration: config.duration,
        analysis,
    }
}

fn blue_green(
    config: &BlueGreenConfig,
    path: &str,
    templates: &Templates,
    uses: &mut Uses,
    cx: &mut Cx,
) -> Strategy {
    let default = BlueGreen::default();
    let mut gate = |config: &Option<AnalysisConfig>, key: &str, uses: &mut Uses| {
        let path = format!("{path}.{key}");
        let analysis = config.as_ref()?;
        Some(inline(analysis, &path, templates, Context::BlueGreen, uses, cx))
    };
    let pre_promotion_analysis = gate(&config.pre_promotion_analysis, "prePromotionAnalysis", uses);
    let post_promotion_analysis = gate(&config.post_promotion_analysis, "postPromotionAnalysis", uses);
    Strategy::BlueGreen(BlueGreen {
        auto_promotion_enabled: config
            .auto_promotion_enabled
            .unwrap_or(default.auto_promotion_enabled),
        auto_promotion_after: config.auto_promotion_seconds,
        pre_promotion_analysis,
        post_promotion_analysis,
        scale_down_delay: config
            .scale_down_delay_seconds
            .unwrap_or(default.scale_down_delay),
        scale_down_delay_revision_limit: config.scale_down_delay_revision_limit,
    })
}

fn arguments(configs: &[Located<StepArgConfig>]) -> Vec<StepArg> {
    let arguments = configs.iter().map(|arg| StepArg {
        name: arg.value.name.clone(),
        value: arg.value.value.clone(),
    });
    arguments.collect()
}

fn references(
    configs: &[Located<TemplateRefConfig>],
    path: &str,
    templates: &Templates,
    uses: &mut Uses,
    cx: &mut Cx,
) -> Vec<TemplateRef> {
    if configs.is_empty() {
        cx.error(
            path,
            "the analysis names no template",
            "add templates: [{templateName: …}]",
        );
    }
    let mut found: Vec<TemplateRef> = Vec::new();
    for Located { path, value: config } in configs {
        let name = &config.template_name;
        if found.iter().any(|other| other.template_name == *name) {
            cx.error(
                path,
                format!("the template `{name}` is named twice in one analysis"),
                "remove one",
            );
            continue;
        }
        if name != BUILT_IN_GATE && !templates.contains_key(name) {
            let hint = match did_you_mean(name, templates.keys().map(String::as_str)) {
                Some(guess) => format!("did you mean `{guess}`?"),
                None if templates.is_empty() => "add it under analysisTemplates".to_owned(),
                None => format!(
                    "there are: {}",
                    templates.keys().cloned().collect::<Vec<_>>().join(", ")
                ),
            };
            if !uses.some_unreadable {
                cx.error(
                    &format!("{path}.templateName"),
                    format!("there is no template `{name}`"),
                    hint,
                );
            }
            continue;
        }
        uses.templates.insert(name.clone());
        found.push(TemplateRef {
            template_name: name.clone(),
        });
    }
    found
}

fn check_analysis(
    analysis: &AnalysisRef,
    path: &str,
    templates: &Templates,
    context: Context,
    uses: &mut Uses,
    cx: &mut Cx,
) {
    let mut args = Args::built_in("service", "canary", "stable");
    for arg in &analysis.args {
        args.set(&arg.name, crate::analysis::ArgValue::plain(&arg.value));
    }
    let mut metrics: BTreeMap<&str, &str> = BTreeMap::new();
    let mut specs = Vec::new();
    for reference in &analysis.templates {
        let name = &reference.template_name;
        if context != Context::Background {
            uses.bounded.insert(name.clone());
        }
        let Some(compiled) = templates.get(name) else {
            continue;
        };
        for metric in &compiled.template.metrics {
            if let Some(other) = metrics.insert(&metric.name, name) {
                let what = format!(
                    "the templates `{other}` and `{name}` both have a metric `{}`",
                    metric.name
                );
                cx.error(path, what, "rename one");
            }
        }
        for arg in &compiled.template.args {
            if arg.value.is_none()
                && arg.secret_file.is_none()
                && arg.secret_env.is_none()
                && !args.has(&arg.name)
            {
                let what = format!("the template `{name}` needs the argument `{}`", arg.name);
                cx.error(
                    path,
                    what,
                    format!("add args: [{{name: {}, value: …}}]", arg.name),
                );
            }
            specs.push(arg);
        }
    }
    if let Err(error) = Args::agree(specs) {
        cx.error(path, error.to_string(), "write the value under args");
    }
}
