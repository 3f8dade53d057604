//! `graylb switch`, `share`, `rules` and `undo`: changes of where a service's new flows go.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{self, Read as _},
    path::Path,
};

use super::{
    Exit,
    args::{ChangeArguments, ClientArguments, RulesCommand},
    call, fail,
};
use crate::{
    api::{CanaryBody, RulesBody, SwitchBody, UndoBody},
    client::{Client, ClientError},
    daemon::Changed,
    model::split::{Cidr, Share},
};

pub(super) fn switch(client: &ClientArguments, change: ChangeArguments, pool: String) -> Exit {
    let ChangeArguments { service, force, if_revision } = change;
    call(client, async |client: Client| {
        let body = SwitchBody { pool: Some(pool), backends: None, force };
        let path = format!("/v1/services/{service}/switch");
        let changed: Changed = client.post_if(&path, &body, if_revision).await?;
        let Changed { service, from, to, generation, .. } = &changed;
        Ok(format!(
            "{}{service} switched from {from} to {to} (generation {generation}){}\n",
            warning(&changed),
            beside(&changed)
        ))
    })
}

/// What goes elsewhere than to the pool that was switched to.
fn beside(changed: &Changed) -> String {
    match changed.split.strip_prefix(&changed.to) {
        Some("") | None => String::new(),
        Some(rest) => format!("; still{}", rest.trim_start_matches(',')),
    }
}

pub(super) fn share(
    client: &ClientArguments,
    change: ChangeArguments,
    canary: Option<(String, Share)>,
) -> Exit {
    let ChangeArguments { service, force, if_revision } = change;
    call(client, async |client: Client| {
        let path = format!("/v1/services/{service}/canary");
        let changed = match canary {
            Some((pool, share)) => {
                client.put_if(&path, &CanaryBody { pool, share, force }, if_revision).await?
            }
            None => client.delete_if(&path, if_revision).await?,
        };
        Ok(described(&changed))
    })
}

pub(super) fn undo(client: &ClientArguments, change: ChangeArguments, to: Option<u64>) -> Exit {
    let ChangeArguments { service, force, if_revision } = change;
    call(client, async |client: Client| {
        let path = format!("/v1/services/{service}/undo");
        let changed = client.post_if(&path, &UndoBody { to, force }, if_revision).await?;
        Ok(described(&changed))
    })
}

fn described(changed: &Changed) -> String {
    let Changed { service, before, split, revision, .. } = changed;
    format!("{}{service}: {split} (revision {revision}; before: {before})\n", warning(changed))
}

fn warning(changed: &Changed) -> String {
    let warning = changed.warning.iter();
    warning.map(|warning| format!("warning: {warning}\n")).collect()
}

type Rules = BTreeMap<Cidr, String>;

pub(super) fn rules(command: RulesCommand) -> Exit {
    match command {
        RulesCommand::List { client, service } => call(&client, async |client: Client| {
            let (rules, _) = rules_of(&client, &service).await?;
            Ok(rules.iter().fold(String::new(), |mut text, (network, pool)| {
                // Writing to a String does not fail.
                let _infallible = writeln!(text, "{network} {pool}");
                text
            }))
        }),
        RulesCommand::Set { client, change, file } => match read(&file) {
            Ok(rules) => edit(&client, change, |known| *known = rules),
            Err(why) => fail(Exit::Refused, format_args!("{}: {why}", file.display())),
        },
        RulesCommand::Add { client, change, network, pool } => edit(&client, change, |rules| {
            rules.insert(network, pool);
        }),
        RulesCommand::Remove { client, change, network } => edit(&client, change, |rules| {
            rules.remove(&network);
        }),
    }
}

/// Reads the rules, edits them, and puts them back if nobody has changed the service meanwhile.
fn edit(client: &ClientArguments, change: ChangeArguments, edit: impl FnOnce(&mut Rules)) -> Exit {
    let ChangeArguments { service, force, if_revision } = change;
    call(client, async |client: Client| {
        let (mut rules, revision) = rules_of(&client, &service).await?;
        edit(&mut rules);
        let path = format!("/v1/services/{service}/rules");
        let expected = if_revision.or(revision);
        let changed = client.put_if(&path, &RulesBody { rules, force }, expected).await?;
        Ok(described(&changed))
    })
}

async fn rules_of(client: &Client, service: &str) -> Result<(Rules, Option<u64>), ClientError> {
    let (body, revision) =
        client.get_with_revision::<RulesBody>(&format!("/v1/services/{service}/rules")).await?;
    Ok((body.rules, revision))
}

/// Lines with a network and a pool.
fn read(path: &Path) -> Result<Rules, String> {
    let mut text = String::new();
    if path == Path::new("-") {
        io::stdin().read_to_string(&mut text).map_err(|error| error.to_string())?;
    } else {
        text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    }
    parse(&text)
}

fn parse(text: &str) -> Result<Rules, String> {
    let mut rules = Rules::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [] => {}
            [network, pool] => {
                let network = network.parse().map_err(|error| format!("line {number}: {error}"))?;
                if rules.insert(network, (*pool).to_owned()).is_some() {
                    return Err(format!("line {number}: {network} is there twice"));
                }
            }
            _ => return Err(format!("line {number}: write a network and a pool, found {line:?}")),
        }
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_rules() {
        let rules =
            parse("# testers\n192.0.2.0/24  green # office\n\n2001:db8::/32 blue").expect("rules");
        let pools: Vec<_> = rules.values().map(String::as_str).collect();
        assert_eq!(pools, ["green", "blue"]);
        for (text, why) in [
            ("192.0.2.0/24", "line 1: write a network and a pool"),
            ("\n192.0.2.1/24 green", "line 2: \"192.0.2.1/24\" is no network"),
            ("192.0.2.1 a\n192.0.2.1/32 b", "line 2: 192.0.2.1/32 is there twice"),
        ] {
            assert!(parse(text).expect_err(text).starts_with(why));
        }
    }
}
