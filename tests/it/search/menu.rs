//! The requests that each browser can send.

use super::{
    acts::{Act, Who},
    start::Start,
};

/// What else may happen, left to chance: to try every order of each of these too would take too long.
pub fn rare(start: &Start) -> &'static [(Who, Act)] {
    const RARE: [(Who, Act); 6] = [
        (Who::A, Act::FailedOthersCreate),
        (Who::A, Act::BindSaveDelete),
        (Who::A, Act::BindSaveClear),
        (Who::M, Act::ModuleDelete),
        (Who::M, Act::SwitchOthers),
        (Who::M, Act::FailedOthers),
    ];
    if start.name == "signed in" { &RARE } else { &[] }
}

/// Logins that count under a limit of sessions, and what else may happen beside them.
pub fn under_a_limit(start: &Start) -> [Vec<(Who, Act)>; 2] {
    use Act::*;
    use Who::{A, B, E, M};
    match start.name {
        "signed in" => [
            vec![(A, BindLogin), (M, FormBind), (M, KeptLogin)],
            vec![(A, Write), (A, Bind), (A, Delete), (A, Others), (A, OthersLogin), (B, Clear), (E, Revoke)],
        ],
        "visitor" => [
            vec![(A, BindLogin), (A, FormBind), (A, KeptLogin), (M, FormBind)],
            vec![(A, Write), (A, OthersLogin), (A, ModuleClearForm), (B, Others), (E, ModuleClear)],
        ],
        _ => [
            vec![(A, BindLogin), (A, FormBind), (M, BindLogin), (M, KeptLogin)],
            vec![(A, OthersForm), (E, ModuleClear)],
        ],
    }
}

/// What each may do, from where. Two requests of the thief are left to chance.
pub fn menu(start: &Start) -> Vec<(Who, Act)> {
    use Act::*;
    let of = |who: Who, acts: &[Act]| acts.iter().map(|act| (who, *act)).collect::<Vec<_>>();
    match start.name {
        "signed in" => [
            of(
                Who::A,
                &[
                    Write,
                    Rework,
                    Bind,
                    Create,
                    BindLogin,
                    EarlyLogin,
                    FormBind,
                    Switch,
                    SwitchLogin,
                    Delete,
                    Clear,
                    Others,
                    OthersBind,
                    OthersLogin,
                    OthersForm,
                    ClearBind,
                    ClearLogin,
                    DeleteBind,
                    DeleteSaveBind,
                    ReworkSaveBind,
                    SwitchClear,
                    SwitchOthers,
                    SwitchLoginOthers,
                    ModuleClearForm,
                    ModuleOthers,
                    ModuleDelete,
                    FailedClear,
                    FailedOthers,
                    FailedOthersLogin,
                ],
            ),
            of(Who::B, &[BindLogin, Clear, Others, OthersBind, OthersLogin]),
            of(
                Who::M,
                &[
                    Write,
                    Rework,
                    Bind,
                    BindLogin,
                    EarlyLogin,
                    SwitchLogin,
                    Switch,
                    Delete,
                    Clear,
                    Others,
                    OthersBind,
                    ClearBind,
                    DeleteBind,
                    DeleteSaveBind,
                    FormBind,
                    ReworkSaveBind,
                    OthersLogin,
                    SwitchClear,
                    OthersForm,
                    ModuleOthers,
                    FailedClear,
                    Create,
                    KeptLogin,
                ],
            ),
            of(Who::E, &[Revoke, ModuleClear, ModuleClearGrace, Expire]),
        ]
        .concat(),
        "visitor" => [
            of(
                Who::A,
                &[
                    Write,
                    Rework,
                    BindLogin,
                    EarlyLogin,
                    KeptLogin,
                    FormBind,
                    SwitchLogin,
                    Delete,
                    Clear,
                    Others,
                    OthersLogin,
                    OthersForm,
                    ClearForm,
                    ModuleClearForm,
                    FailedDelete,
                    FailedOthersLogin,
                ],
            ),
            of(Who::B, &[Clear, Others, OthersLogin]),
            of(Who::M, &[Write, Rework, Delete, Clear, FormBind, BindLogin, KeptLogin, OthersLogin]),
            of(Who::E, &[ModuleClear, Revoke, Expire]),
        ]
        .concat(),
        "empty" => [
            of(
                Who::A,
                &[Write, BindLogin, FormBind, Delete, Clear, OthersLogin, OthersForm, ClearForm, ModuleClearForm],
            ),
            of(Who::M, &[BindLogin, KeptLogin, FormBind]),
            of(Who::E, &[ModuleClear]),
        ]
        .concat(),
        "another key" => [
            of(
                Who::A,
                &[Write, BindLogin, FormBind, Delete, Clear, Others, OthersLogin, OthersForm, ClearForm, FailedClear],
            ),
            of(Who::B, &[Write, Delete, Clear, Others, OthersLogin]),
            of(Who::E, &[ModuleClear]),
        ]
        .concat(),
        _ => [
            of(
                Who::A,
                &[
                    Write,
                    Rework,
                    Bind,
                    BindLogin,
                    SwitchLogin,
                    Delete,
                    Clear,
                    Others,
                    OthersLogin,
                    Switch,
                    FormBind,
                    FailedDelete,
                    FailedClear,
                ],
            ),
            of(Who::M, &[Write, Delete, Bind]),
        ]
        .concat(),
    }
}
