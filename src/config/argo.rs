//! Keys that people bring from Argo Rollouts and that mean nothing, or something else, to a proxy.
//!
//! What only moves pods is accepted with a warning, so that a canary pastes unchanged; what would have had an effect is
//! refused with its replacement.

/// What becomes of a key that is not ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Foreign {
    /// Accepted, with this warning.
    Ignored(&'static str),
    /// Refused: what is wrong, what would be right.
    Refused(&'static str, &'static str),
}

const PODS: Foreign = Foreign::Ignored("this moves pods in Kubernetes and has no effect here");
const ROUTER: Foreign = Foreign::Ignored("Serin is the router itself: this has no effect here");
const OTHER_PROVIDER: Foreign = Foreign::Refused(
    "this provider is not built in",
    "use serin (Serin's own counters), prometheus, or web with a jsonPath",
);

/// What becomes of `key` in the mapping that the type `owner` reads; none: it is simply unknown.
pub(super) fn foreign_key(owner: &str, key: &str) -> Option<Foreign> {
    Some(match (owner, key) {
        (
            "CanaryConfig" | "BlueGreenConfig",
            "maxSurge"
            | "maxUnavailable"
            | "antiAffinity"
            | "canaryMetadata"
            | "stableMetadata"
            | "minPodsPerReplicaSet"
            | "dynamicStableScale"
            | "replicaProgressThreshold"
            | "previewReplicaCount"
            | "previewMetadata"
            | "activeMetadata",
        )
        | (
            "ServiceConfig",
            "replicas"
            | "selector"
            | "template"
            | "workloadRef"
            | "minReadySeconds"
            | "revisionHistoryLimit"
            | "restartAt",
        ) => PODS,
        (
            "CanaryConfig",
            "scaleDownDelaySeconds" | "scaleDownDelayRevisionLimit" | "abortScaleDownDelaySeconds",
        )
        | ("BlueGreenConfig", "abortScaleDownDelaySeconds") => {
            Foreign::Ignored("Serin stops no process: a version stays reachable until it is releasable")
        }
        (
            "CanaryConfig" | "BlueGreenConfig",
            "canaryService" | "stableService" | "pingPong" | "trafficRouting",
        )
        | ("BlueGreenConfig", "activeService" | "previewService") => ROUTER,
        ("ServiceConfig", "progressDeadlineSeconds" | "progressDeadlineAbort") => Foreign::Refused(
            "this key is spelled otherwise here",
            "write ready: {progressDeadline: 10m}",
        ),
        ("ServiceConfig", "steps" | "canary.steps") => Foreign::Refused(
            "steps belong to a strategy",
            "write strategy: {canary: {steps: […]}}",
        ),
        ("StepConfig", "plugin") => Foreign::Refused(
            "step plugins are programs that Serin does not run",
            "use an analysis step with the provider web, or a pause that your CI releases with `serin promote`",
        ),
        ("MetricConfig" | "TemplateConfig", "measurementRetention") => {
            Foreign::Ignored("Serin keeps every measurement as long as the rollout (state.retention)")
        }
        ("AnalysisConfig", "dryRun" | "measurementRetention" | "analysisRunMetadata")
        | ("TemplateConfig", "dryRun") => Foreign::Refused(
            "this key stands at the metric here",
            "write dryRun: true at each metric meant",
        ),
        (
            "ProviderConfig",
            "datadog" | "newRelic" | "wavefront" | "cloudWatch" | "graphite" | "influxdb" | "skywalking"
            | "job" | "plugin",
        ) => OTHER_PROVIDER,
        ("ProviderConfig", "kayenta") => Foreign::Refused(
            "Serin does not ask Kayenta, but has its test",
            "write mannWhitney: {…} instead of provider, once for each metric of the canary configuration; or judge: {}, which may \
             be asked at any time",
        ),
        ("PrometheusConfig", "authentication") => Foreign::Refused(
            "authentication is given as a header here",
            "write headers: {Authorization: \"Bearer {{args.token}}\"} and args: [{name: token, secretFile: …}]",
        ),
        ("TemplateConfig", "templates") => Foreign::Refused(
            "templates do not name other templates here",
            "list them all where the analysis is used",
        ),
        ("TemplateRefConfig", "clusterScope") => {
            Foreign::Ignored("there is no cluster: templates have one name space")
        }
        ("StepArgConfig", "valueFrom") => Foreign::Refused(
            "Serin reads no Kubernetes fields",
            "write value: …; the versions are built in as {{args.canary-version}} and {{args.stable-version}}",
        ),
        ("ArgConfig", "valueFrom") => Foreign::Refused(
            "Serin reads no Kubernetes secrets or fields",
            "write secretFile: /path/of/the/mounted/secret, or value: ${ENV}",
        ),
        ("FileConfig", "apiVersion" | "kind" | "metadata" | "spec") => Foreign::Refused(
            "this is a Kubernetes manifest's key",
            "see the message at the file's first line",
        ),
        (_, _) => return None,
    })
}

/// What somebody is told who hands over a whole manifest.
pub(super) const MANIFEST: &str = "this is an Argo Rollouts manifest, not a Serin configuration";

/// And how it becomes one.
pub(super) const MANIFEST_HINT: &str = "move spec.strategy of the Rollout to services[].strategy and name and spec.metrics \
     of each AnalysisTemplate to analysisTemplates[] (both paste unchanged), then add listeners and each service's stable \
     endpoints; what else would have to change in them is reported here too";
