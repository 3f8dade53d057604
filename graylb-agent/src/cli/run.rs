//! `graylb run`

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path, sync::Arc};

use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tracing::{error, info, warn};

use super::{Exit, fail};
use crate::{
    api::{self, Context},
    config::{ApiConfig, Config},
    daemon::{self, Handle},
    telemetry, trust,
};

pub(super) fn run(path: &Path) -> Exit {
    if let Err(error) = trust::check(path) {
        return fail(Exit::Refused, format_args!("the config cannot be trusted: {error}"));
    }
    let (config, warnings) = match Config::load(path) {
        Ok(loaded) => loaded,
        Err(errors) => return fail(Exit::Refused, errors),
    };
    telemetry::init(&config.agent.log);
    warnings.iter().for_each(|warning| warn!("{warning}"));
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(Exit::Failed, error),
    };
    runtime.block_on(serve(config, path))
}

async fn serve(config: Config, path: &Path) -> Exit {
    let api = config.api.clone();
    let token = match token(&api) {
        Ok(token) => token,
        Err(error) => return fail(Exit::Refused, error),
    };
    // Before anything is loaded, so that a port in use leaves nothing behind.
    let listener = match TcpListener::bind(api.listen).await {
        Ok(listener) => listener,
        Err(error) => {
            return fail(
                Exit::Failed,
                format_args!("cannot listen on {} (api.listen): {error}", api.listen),
            );
        }
    };
    let started = match daemon::start(config, path.to_owned()) {
        Ok(started) => started,
        Err(error) => return fail(Exit::Failed, error),
    };
    let context = Context { daemon: started.handle.clone(), token, listen: api.listen };
    let server = tokio::spawn(api::serve(listener, api::router(context)));
    let reloads = tokio::spawn(reload_on_hangup(started.handle.clone()));
    info!("API on http://{}", api.listen);
    let daemon::Started { daemon, commands, observations, network, .. } = started;
    daemon.run(commands, observations, network, asked_to_stop()).await;
    server.abort();
    reloads.abort();
    Exit::Done
}

/// The API's token; a file that others can read is no secret.
fn token(api: &ApiConfig) -> Result<Option<Arc<str>>, String> {
    let Some(path) = &api.token_file else { return Ok(None) };
    trust::check(path).map_err(|error| format!("api.token_file {}: {error}", path.display()))?;
    let tried = |error: io::Error| format!("api.token_file {}: {error}", path.display());
    let mode = fs::metadata(path).map_err(tried)?.mode();
    if mode & 0o077 != 0 {
        return Err(format!(
            "api.token_file {} can be read by others (mode {:o}): chmod 600 it",
            path.display(),
            mode & 0o7777
        ));
    }
    let token = fs::read_to_string(path).map_err(tried)?;
    match token.trim() {
        "" => Err(format!("api.token_file {} is empty", path.display())),
        token => Ok(Some(token.into())),
    }
}

async fn asked_to_stop() {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        error!("cannot wait for SIGTERM and SIGINT");
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

async fn reload_on_hangup(daemon: Handle) {
    let Ok(mut hangup) = signal(SignalKind::hangup()) else {
        error!("cannot wait for SIGHUP");
        return;
    };
    while hangup.recv().await.is_some() {
        if let Err(error) = daemon.reload().await {
            error!("reload refused, nothing changed:\n{error}");
        }
    }
}
