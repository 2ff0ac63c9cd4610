//! Where the verbs that judge again find what judges were fed: a running Serin, or a state file.

use super::{
    args::Past,
    client::{Ask, Client, segment},
    exit::{Exit, Failure},
};
use crate::{
    admin::ServiceList,
    analysis::replay::Stretch,
    control::{History, ReadError, Recording, Recordings, StateFile, StoredEvent},
};

/// What is said where something should be recorded and is not.
pub(super) const NOTHING: &str = "nothing is recorded of this rollout, and the store does not say why";

/// One or the other.
#[derive(Debug)]
pub(super) enum Source {
    Server(Client),
    File(StateFile),
}

#[allow(
    clippy::needless_pass_by_value,
    reason = "where an error is mapped it is at hand by value"
)]
fn unreadable(error: ReadError) -> Failure {
    let exit = match &error {
        ReadError::NoService(_) | ReadError::NoRollout(..) => Exit::Usage,
        ReadError::Store(_) | ReadError::File(_) => Exit::Internal,
    };
    Failure::new(exit, error.to_string())
}

impl Source {
    /// As the arguments say.
    pub(super) fn of(args: &Past) -> Result<Source, Failure> {
        match &args.store {
            Some(file) => StateFile::open(file).map(Source::File).map_err(unreadable),
            None => Client::of(&args.target).map(Source::Server),
        }
    }

    /// The names of all services.
    pub(super) async fn services(&self) -> Result<Vec<String>, Failure> {
        match self {
            Source::File(file) => file.services().map_err(unreadable),
            Source::Server(client) => {
                let all: ServiceList = client.ask(&Ask::get("/v1/services")).await?;
                Ok(all.services.iter().map(|one| one.service.to_string()).collect())
            }
        }
    }

    /// The ids of a service's rollouts, oldest first.
    async fn rollouts(&self, service: &str) -> Result<Vec<String>, Failure> {
        let rollouts = match self {
            Source::File(file) => {
                if !self.services().await?.iter().any(|known| known == service) {
                    return Err(unreadable(ReadError::NoService(service.to_owned())));
                }
                file.rollouts(service).map_err(unreadable)?
            }
            Source::Server(client) => {
                let path = format!("/v1/services/{}/history?limit=1", segment(service));
                client.ask::<History>(&Ask::get(path)).await?.rollouts
            }
        };
        Ok(rollouts.into_iter().rev().map(|rollout| rollout.id).collect())
    }

    /// What the judges of a rollout were fed.
    pub(super) async fn recordings(&self, service: &str, rollout: &str) -> Result<Recordings, Failure> {
        match self {
            Source::File(file) => file.recordings(service, rollout).map_err(unreadable),
            Source::Server(client) => {
                let (service, rollout) = (segment(service), segment(rollout));
                let path = format!("/v1/services/{service}/rollouts/{rollout}/recordings");
                Ok(client.ask(&Ask::get(path)).await?)
            }
        }
    }

    /// One rollout of a service, or all of them, oldest first.
    pub(super) async fn wanted(&self, service: &str, rollout: Option<&str>) -> Result<Vec<String>, Failure> {
        match rollout {
            Some(rollout) => Ok(vec![rollout.to_owned()]),
            None => self.rollouts(service).await,
        }
    }
}

/// A recording as it is judged again.
pub(super) fn stretches(recording: &Recording) -> Vec<Stretch<'_>> {
    let stretches = recording.stretches.iter();
    let one = stretches.map(|stretch| Stretch {
        number: stretch.number,
        bytes: &stretch.data,
    });
    one.collect()
}

/// What a stored decision says, if it was a judge's.
pub(super) fn by_judge(event: &StoredEvent) -> Option<&str> {
    let said = event.detail["by"]["message"].as_str()?;
    let of_judge = ["ROLL BACK at weight ", "PROCEED from ", "PAUSE at weight "];
    of_judge.iter().any(|words| said.contains(words)).then_some(said)
}

/// Why a decision has no recording, when the store can account for that.
pub(super) fn not_recorded(recordings: &Recordings, event: &StoredEvent) -> Option<String> {
    let unrecorded = &recordings.unrecorded;
    if event.id <= unrecorded.before_recording {
        return Some("an earlier Serin decided it, which did not record judges".to_owned());
    }
    let given_up = unrecorded.given_up.filter(|_| recordings.recordings.is_empty())?;
    Some(format!(
        "its recordings were given up at {given_up}: the state file held more than state.retention.recordings"
    ))
}
