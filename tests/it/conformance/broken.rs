//! Backends with one bug each. The test of the broken promise finds it, with a fitting message.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::Bound,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, OnceLock},
    time::Duration,
};

use futures_util::FutureExt;
use jam_session::{
    Backend, By, Clear, Cleared, Clock, Count, Created, Cursor, Left, Limit, Mark, Outcome, Owner, Page, Record,
    RecordId, Since, Terms, backend,
    conformance::{Promise, Subject},
};
use tokio::task::yield_now;

use crate::store::lasting;

/// What is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Flaw {
    Nothing,
    UpdateInserts,
    UpdateInsertsWhatExpired,
    UpdateIgnoresTheVersion,
    UpdateComparesAsDouble,
    UpdateComparesHalfOfTheVersion,
    UpdateReadsThenWrites,
    UpdateIsAlwaysGoneOnConflict,
    UpdateKeepsTheTime,
    UpdateOnlyLengthens,
    UpdateForNoTimeKeeps,
    UpdateForNoTimeIgnoresTheVersion,
    UpdateLosesTheIndex,
    UpdateIsAppliedAgainLater,
    UpdateTakesItsOwnVersionForGone,
    UpdateAddsWithoutPayloadLimit,
    ConflictShowsWhatWasThereFirst,
    ConflictShowsTheOfferedTime,
    CreateOverwrites,
    CreateOverwritesItsOwnVersion,
    CreateRefusesWhatExpired,
    CreateReadsThenWrites,
    CreateTouchesWhatIsThere,
    CreateOfTakenChangesTheIndex,
    TouchIsUnconditional,
    TouchRevives,
    TouchRevivesWhatExpired,
    TouchOnlyLengthens,
    TouchDoesNothing,
    TouchWritesANewVersion,
    TouchAddsTime,
    TouchForgetsTheIndex,
    TouchReadsThenWrites,
    DeleteIsAlwaysTrue,
    DeleteLeavesTheIndex,
    DeleteForgetsAnonymous,
    DeleteIsByHalvesWhenDropped,
    ExpiryOnlyOnLoad,
    ListShowsExpired,
    ListIsCutAtAHundred,
    ListShowsThePayloadOfCreate,
    ListShowsTheFullTime,
    ClearForgetsTheNewest,
    ClearIgnoresKeep,
    ClearIsByAnySid,
    ClearCountsExpired,
    ClearCountsKeep,
    ClearKeepsForLonger,
    ClearIsByWhatHasEnded,
    ClearListsThenDeletes,
    ClearIsByHalvesWhenDropped,
    ClearBarsWhatComesAfter,
    ClearEndsAnonymousToo,
    OwnerIsNoPartOfTheName,
    NamesIgnoreCase,
    NamesAreCutAt32,
    UnderscoreIsAnyCharacter,
    WholeSecondsRoundedUp,
    TimesHave32Bits,
    TimesOverflow,
    PayloadIsText,
    PayloadIsTrimmed,
    PayloadOfNothingIsNothing,
    PayloadEndsAtZero,
    PayloadIsCutAt64KiB,
    TheLockIsLostWhenDropped,
    NothingExpires,
    EachHandleHasACache,
    UpdateOfZeroInserts,
    CreateIsNotListed,
    CreateEntersTheIndexFirst,
    CreateOverExpiredReadsThenWrites,
    ListIgnoresTheOwner,
    LoadGivesTime,
    VersionsAreNames,
    ClearIsMadeAgain,
    ClearCountsNothingWhenRepeated,
    ClearLooksAtTheRecordBeforeTheName,
    ClearIsAlwaysARepeat,
    ClearAlwaysKeepsWhatItIsBy,
    ClearIgnoresTheVersion,
    ClearIsGoneOnConflict,
    ClearEndsTheOthersOnConflict,
    ClearEndsAllWhenGone,
    ClearIsRememberedWhenRefused,
    ClearOfNothingIsForgotten,
    ClearThatKeepsIsForgotten,
    ClearIsForgottenAfterTenMinutes,
    ClearIsOfEveryOwner,
    CreateIgnoresSince,
    CreateStoresWhatIsLate,
    CreateIsTakenBeforeItIsLate,
    CreateIsLateForEver,
    CreateAsOldAsTheClearIsLate,
    CreateTakesAnyAge,
    CreateTakesAnyAgeOfVisitors,
    CreateIsLateThoughItIsThere,
    CreateLooksAtClearsFirst,
    CreateOfItsOwnIsTaken,
    RetriedCreateIsAlwaysAnError,
    RetriedCreateStoresNothing,
    RetriedCreateStoresAndFails,
    RetriedCreateRevives,
    RetriedCreateIsDoneThoughItEnded,
    RetriedCreateIsNeverLate,
    RetriedUpdateOfItsOwnIsAConflict,
    RetriedUpdateIsNeverWritten,
    RetriedUpdateForgetsItsVersion,
    RetriedUpdateIsAlwaysDone,
    RetriedUpdateIsWrittenOverAnything,
    RetriedUpdateInserts,
    MarkNamesNothing,
    MarkNamesOldClears,
    MarkIsAClear,
    MarksAreOfNoOpening,
    CreateIgnoresMarks,
    CreateGoesByTheTimeOfMarks,
    CreateTakesAnyMarkOfNoClear,
    CreateTakesAMarkOnce,
    CreateTakesAnyOldMark,
    CreateTakesMarksForTenMinutes,
    ClearIsForgottenAfterTwentyMinutes,
    LimitIsIgnored,
    LimitIsOneMore,
    LimitEndsTheOldest,
    LimitEndsTheNew,
    LimitEndsOnlyOne,
    LimitEndsAndDoesNotSay,
    LimitSaysAndDoesNotEnd,
    LimitForgetsWhatItEnded,
    LimitCountsExpired,
    LimitIsOfAllOwners,
    LimitIsOfVisitorsToo,
    LimitNeverRefuses,
    LimitEndsByHalvesWhenDropped,
    LimitReadsThenWrites,
    LimitEndsBeforeItIsLate,
    LimitEndsBeforeItIsTaken,
    LimitEndsWhenRepeated,
    FullIsStored,
    FullBeforeItIsLate,
    FullBeforeItIsTaken,
    FullBeforeItIsDone,
    LoadIsHeardOf,
    ListIsHeardOf,
    ScanIsHeardOf,
    TouchIsNotHeardOf,
    TouchOfAnotherVersionIsHeardOf,
    UpdateIsNotHeardOf,
    LeavesNothing,
    LeavesAnyVersion,
    LeavesGoneOnConflict,
    LeavesConflictUnstored,
    LeavesAndDoesNotSay,
    LeavesBeforeItIsRefused,
    LeavesOnlyOnceAndSaysDone,
    LeavesReadsThenWrites,
    LeavesAnotherForGood,
    ScanForgetsVisitors,
    ScanShowsExpired,
    ScanShowsThePayloadOfCreate,
    ScanShowsTheFullTime,
    ScanGivesTime,
    ScanGoesByNumber,
    ScanIsOfASnapshot,
    ScanShowsAllAtOnce,
    ScanIsOnePage,
    ScanNeverEnds,
    ScanKeepsItsPlaceItself,
    CursorOfAnotherIsTheEnd,
    CursorOfAnotherIsAnywhere,
    CountsExpired,
    CountsOnlyOwners,
    CountMixesUp,
    // What is allowed.
    LeavesForTheCallerToDo,
    ScanShowsTwice,
    ScanHasEmptyPages,
    CursorOfAnotherBegins,
    RetriedCreateIsAnErrorIfNothingIsThere,
}

/// None of these is a flaw: the contract allows it.
const ALLOWED: [Flaw; 6] = [
    Nothing,
    LeavesForTheCallerToDo,
    ScanShowsTwice,
    ScanHasEmptyPages,
    CursorOfAnotherBegins,
    RetriedCreateIsAnErrorIfNothingIsThere,
];

use Flaw::*;

/// For each flaw the promise that it breaks first in mind, and words of what that one says.
const CAUGHT: &[(Flaw, &str, &str)] = &[
    (UpdateInserts, "an_update_brings_nothing_back", "a logout is undone"),
    (UpdateInsertsWhatExpired, "what_has_expired_is_absent_in_every_verb", "`update` of an expired record"),
    (UpdateIgnoresTheVersion, "an_update_of_another_version_is_a_conflict", "overwrote a version that it had not seen"),
    (UpdateComparesAsDouble, "any_version_that_is_not_negative", "a parallel change is lost"),
    (UpdateComparesHalfOfTheVersion, "any_version_that_is_not_negative", "a parallel change is lost"),
    (
        UpdateReadsThenWrites,
        "no_count_is_lost_among_parallel_updates",
        "changes that were answered with success are lost",
    ),
    (UpdateReadsThenWrites, "of_parallel_updates_one_is_done", "are `Done`"),
    (UpdateIsAlwaysGoneOnConflict, "an_update_of_another_version_is_a_conflict", "`Gone`"),
    (UpdateKeepsTheTime, "an_update_restarts_the_time_to_live", "who is active is signed out"),
    (UpdateOnlyLengthens, "an_update_can_shorten_the_time_to_live", "left the longer one"),
    (UpdateForNoTimeKeeps, "an_update_for_no_time_ends_the_record", "who logs out stays signed in"),
    (UpdateForNoTimeIgnoresTheVersion, "an_update_for_no_time_ends_the_record", "expected another version"),
    (UpdateLosesTheIndex, "a_list_follows_every_write", "lost a record by an `update`"),
    (UpdateIsAppliedAgainLater, "a_repeated_update_is_not_applied_again", "answered with success is lost"),
    (UpdateTakesItsOwnVersionForGone, "a_repeated_update_is_not_applied_again", "`Gone`"),
    (UpdateAddsWithoutPayloadLimit, "any_bytes_are_a_payload", "another payload"),
    (ConflictShowsWhatWasThereFirst, "an_update_of_another_version_is_a_conflict", "`Conflict` shows"),
    (ConflictShowsTheOfferedTime, "an_update_of_another_version_is_a_conflict", "`Conflict` shows a time to live"),
    (CreateOverwrites, "a_taken_name_is_left_alone", "`create` took a name"),
    (CreateOverwritesItsOwnVersion, "a_repeated_create_leaves_its_record_alone", "`create`"),
    (CreateRefusesWhatExpired, "a_name_is_free_again_after_its_end", "over by Expiry"),
    (CreateReadsThenWrites, "of_parallel_creates_one_wins", "were told that it is theirs"),
    (CreateTouchesWhatIsThere, "a_taken_name_is_left_alone", "more time to live"),
    (CreateOfTakenChangesTheIndex, "a_taken_name_is_left_alone", "`list` shows 0 records"),
    (TouchIsUnconditional, "a_touch_needs_the_version_it_saw", "`touch` of another version"),
    (TouchRevives, "a_touch_brings_nothing_back", "`touch` brought back"),
    (TouchRevivesWhatExpired, "what_has_expired_is_absent_in_every_verb", "`touch` revived"),
    (TouchOnlyLengthens, "a_touch_can_shorten_the_time_to_live", "passes its deadline"),
    (TouchDoesNothing, "a_touch_restarts_the_time_to_live", "who only reads is signed out"),
    (TouchWritesANewVersion, "a_touch_changes_nothing_but_the_time_to_live", "version"),
    (TouchAddsTime, "a_time_to_live_is_never_lengthened", "after `touch`"),
    (TouchForgetsTheIndex, "a_touch_restarts_the_time_to_live", "`list` lost a record"),
    (TouchReadsThenWrites, "an_end_beside_updates_and_touches_is_the_end", "a logout is undone"),
    (DeleteIsAlwaysTrue, "a_delete_ends_and_says_whether_it_was_live", "never was there"),
    (DeleteLeavesTheIndex, "a_list_follows_every_write", "`list` shows a session after"),
    (DeleteForgetsAnonymous, "a_delete_ends_and_says_whether_it_was_live", "who was revoked stays signed in"),
    (DeleteIsByHalvesWhenDropped, "a_dropped_verb_is_all_or_nothing", "by halves"),
    (ExpiryOnlyOnLoad, "what_has_expired_is_absent_in_every_verb", "expired"),
    (ListShowsExpired, "what_has_expired_is_absent_in_every_verb", "`list` shows an expired record"),
    (ListIsCutAtAHundred, "five_hundred_of_one_owner", "shows 100 of 500"),
    (ListShowsThePayloadOfCreate, "a_list_follows_every_write", "`list` after `update`"),
    (ListShowsTheFullTime, "a_list_follows_every_write", "`list` after `touch` shows a time to live"),
    (ClearForgetsTheNewest, "a_clear_ends_all_of_its_owner", "still signed in somewhere"),
    (ClearIgnoresKeep, "a_clear_spares_the_one_to_keep", "ended the record that it was to keep"),
    (ClearIsByAnySid, "a_clear_by_what_is_not_the_owners_is_gone", "did something"),
    (ClearCountsExpired, "a_clear_counts_only_what_was_live", "sessions that have ended"),
    (ClearCountsKeep, "a_clear_spares_the_one_to_keep", "beside the one kept"),
    (ClearKeepsForLonger, "a_clear_spares_the_one_to_keep", "ends too late"),
    (ClearIsByWhatHasEnded, "a_clear_by_what_is_not_the_owners_is_gone", "did something"),
    (ClearListsThenDeletes, "an_end_beside_updates_and_touches_is_the_end", "`clear`"),
    (ClearIsByHalvesWhenDropped, "a_dropped_verb_is_all_or_nothing", "records of 3"),
    (ClearBarsWhatComesAfter, "after_a_clear_new_ones_begin", "signs in again"),
    (ClearEndsAnonymousToo, "a_clear_ends_all_of_its_owner", "they were 8"),
    (OwnerIsNoPartOfTheName, "one_sid_of_two_owners_is_two_records", "a record of another name"),
    (NamesIgnoreCase, "names_are_taken_to_the_letter", "differ in a letter or its case"),
    (NamesAreCutAt32, "names_are_taken_to_the_letter", "differ in a letter or its case"),
    (UnderscoreIsAnyCharacter, "names_are_taken_to_the_letter", "similar names"),
    (WholeSecondsRoundedUp, "a_time_to_live_is_never_lengthened", "who is idle stays signed in too long"),
    (TimesHave32Bits, "times_from_a_millisecond_to_ten_years", "who asked to be remembered is signed out"),
    (TimesOverflow, "a_time_beyond_all_counting_is_long_or_an_error", "panicked at a time to live"),
    (PayloadIsText, "any_bytes_are_a_payload", "another payload"),
    (PayloadIsTrimmed, "any_bytes_are_a_payload", "another payload"),
    (PayloadOfNothingIsNothing, "any_bytes_are_a_payload", "is live"),
    (PayloadEndsAtZero, "any_bytes_are_a_payload", "another payload"),
    (PayloadIsCutAt64KiB, "any_bytes_are_a_payload", "another payload"),
    (TheLockIsLostWhenDropped, "a_dropped_verb_is_all_or_nothing", "failed"),
    (NothingExpires, "what_has_expired_is_absent_in_every_verb", "had expired"),
    (UpdateInserts, "what_was_never_created_is_absent", "after nothing at all"),
    (UpdateOfZeroInserts, "what_was_never_created_is_absent", "after nothing at all"),
    (CreateIsNotListed, "what_is_created_is_loaded", "`list` does not show what `create` made"),
    (CreateEntersTheIndexFirst, "a_create_beside_a_clear_is_ended_or_listed", "a session that its user cannot end"),
    (CreateOverExpiredReadsThenWrites, "of_parallel_creates_one_wins", "were told that it is theirs"),
    (ListIgnoresTheOwner, "a_list_is_complete_and_only_its_owners", "not the owner's"),
    (LoadGivesTime, "looking_gives_no_time", "does not fall"),
    (VersionsAreNames, "one_sid_of_two_owners_is_two_records", "another owner"),
    (ClearIsMadeAgain, "a_repeated_clear_ends_nothing_more", "who has just signed in is signed out"),
    (ClearCountsNothingWhenRepeated, "a_repeated_clear_ends_nothing_more", "says 0 when it is repeated"),
    (
        ClearLooksAtTheRecordBeforeTheName,
        "a_repeated_clear_ends_nothing_more",
        "a sign-out that was made is answered 401",
    ),
    (ClearIsAlwaysARepeat, "a_repeated_clear_ends_nothing_more", "of another name"),
    (ClearAlwaysKeepsWhatItIsBy, "a_clear_by_a_record_ends_that_one_too", "not to be kept"),
    (ClearIgnoresTheVersion, "a_clear_by_another_version_is_a_conflict", "whoever has an ID that was replaced"),
    (ClearIsGoneOnConflict, "a_clear_by_another_version_is_a_conflict", "is `Gone`, though the record is live"),
    (ClearEndsTheOthersOnConflict, "a_clear_by_another_version_is_a_conflict", "by another version ended a record"),
    (ClearEndsAllWhenGone, "a_clear_by_what_is_not_the_owners_is_gone", "did something"),
    (ClearIsRememberedWhenRefused, "a_clear_that_ended_nothing_is_not_remembered", "keeps the user from signing in"),
    (ClearOfNothingIsForgotten, "a_create_since_before_a_clear_is_late", "a `clear` that found nothing"),
    (ClearThatKeepsIsForgotten, "a_create_since_before_a_clear_is_late", "one that is kept"),
    (ClearIsForgottenAfterTenMinutes, "a_clear_is_remembered_for_fifteen_minutes", "fourteen minutes ago"),
    (ClearIsOfEveryOwner, "a_create_since_before_a_clear_is_late", "of another owner"),
    (CreateIgnoresSince, "a_create_since_before_a_clear_is_late", "survives the sign-out"),
    (CreateStoresWhatIsLate, "a_create_since_before_a_clear_is_late", "stored a record"),
    (CreateIsTakenBeforeItIsLate, "a_create_since_before_a_clear_is_late", "is Taken and not `Late`"),
    (CreateIsLateForEver, "a_create_since_after_a_clear_is_done", "nobody can sign in again"),
    (CreateAsOldAsTheClearIsLate, "a_create_as_old_as_the_clear_is_done", "nobody can sign in"),
    (CreateTakesAnyAge, "a_create_since_more_than_fifteen_minutes_is_late", "more than fifteen minutes"),
    (CreateTakesAnyAgeOfVisitors, "a_create_since_more_than_fifteen_minutes_is_late", "more than fifteen minutes"),
    (CreateIsLateThoughItIsThere, "a_record_that_is_there_is_never_late", "a login that was made is answered 401"),
    (CreateLooksAtClearsFirst, "no_create_since_before_a_clear_outlives_it", "who had the old password is signed in"),
    (CreateOfItsOwnIsTaken, "a_create_of_the_very_record_is_done", "a login that was made is made again"),
    (RetriedCreateIsAlwaysAnError, "a_create_of_the_very_record_is_done", "`create` failed"),
    (RetriedCreateStoresNothing, "a_retried_create_that_was_never_made_is_made_or_an_error", "does not find a record"),
    (
        RetriedCreateStoresAndFails,
        "a_retried_create_that_was_never_made_is_made_or_an_error",
        "and its record is there",
    ),
    (RetriedCreateRevives, "a_retried_create_brings_nothing_back", "who was revoked is signed in"),
    (RetriedCreateIsDoneThoughItEnded, "a_retried_create_brings_nothing_back", "and no error"),
    (RetriedCreateIsNeverLate, "a_retried_create_can_be_late", "a `clear` before it was retried"),
    (RetriedUpdateOfItsOwnIsAConflict, "a_retried_update_that_was_written_is_done", "it is lost, or made twice"),
    (
        RetriedUpdateIsNeverWritten,
        "a_retried_update_that_was_never_written_is_written",
        "a lost request costs an answer",
    ),
    (RetriedUpdateForgetsItsVersion, "a_retried_update_that_was_replaced_is_not_made_twice", "made a second time"),
    (
        RetriedUpdateIsWrittenOverAnything,
        "a_retried_update_that_was_replaced_is_not_made_twice",
        "`load` after a retried",
    ),
    (
        RetriedUpdateIsAlwaysDone,
        "a_retried_update_that_came_too_late_is_not_done",
        "a change that is lost is called done",
    ),
    (RetriedUpdateInserts, "a_retried_update_of_what_has_ended_is_gone", "a logout is undone"),
    (EachHandleHasACache, "an_update_replaces_what_it_expects", "the last one written"),
    (MarkNamesNothing, "a_mark_names_the_last_clear", "names None"),
    (ClearIsRememberedWhenRefused, "a_mark_names_the_last_clear", "after a `clear` that was `Gone`"),
    (ClearOfNothingIsForgotten, "a_mark_names_the_last_clear", "after `clear` names"),
    (MarkNamesOldClears, "a_mark_is_good_for_fifteen_minutes", "names a `clear` of more than fifteen minutes ago"),
    (MarkIsAClear, "a_mark_writes_nothing", "keeps the user from signing in"),
    (MarksAreOfNoOpening, "a_mark_of_another_opening_is_late", "closed and opened again"),
    (CreateIgnoresMarks, "a_create_with_a_mark_from_before_a_clear_is_late", "survives the sign-out"),
    (CreateGoesByTheTimeOfMarks, "a_create_with_a_mark_from_before_a_clear_is_late", "survives the sign-out"),
    (CreateTakesAnyMarkOfNoClear, "a_create_with_a_mark_from_before_a_clear_is_late", "survives the sign-out"),
    (ClearThatKeepsIsForgotten, "a_create_with_a_mark_from_before_a_clear_is_late", "one that is kept"),
    (CreateIsTakenBeforeItIsLate, "a_create_with_a_mark_from_before_a_clear_is_late", "is Taken and not `Late`"),
    (CreateTakesAMarkOnce, "a_create_with_a_mark_from_after_a_clear_is_done", "nobody can sign in"),
    (ClearIsOfEveryOwner, "a_create_with_a_mark_from_after_a_clear_is_done", "Late after a `clear` of another owner"),
    (CreateTakesAnyOldMark, "a_mark_is_good_for_fifteen_minutes", "fifteen minutes"),
    (CreateTakesMarksForTenMinutes, "a_mark_is_good_for_fifteen_minutes", "nobody can sign in with a slow form"),
    (ClearIsForgottenAfterTwentyMinutes, "a_mark_is_good_for_fifteen_minutes", "nobody can sign in with a slow form"),
    (
        CreateLooksAtClearsFirst,
        "no_create_with_a_mark_from_before_a_clear_outlives_it",
        "who had the old password is signed in",
    ),
    (LimitIsIgnored, "above_a_limit_the_least_recent_ends", "ended []"),
    (LimitIsOneMore, "above_a_limit_the_least_recent_ends", "ended []"),
    (LimitEndsTheOldest, "above_a_limit_the_least_recent_ends", "that was only loaded"),
    (LimitEndsTheNew, "above_a_limit_the_least_recent_ends", "who is active is signed out"),
    (LoadIsHeardOf, "above_a_limit_the_least_recent_ends", "that was only loaded"),
    (ListIsHeardOf, "above_a_limit_the_least_recent_ends", "who is active is signed out"),
    (ScanIsHeardOf, "above_a_limit_the_least_recent_ends", "who is active is signed out"),
    (TouchIsNotHeardOf, "above_a_limit_the_least_recent_ends", "who is active is signed out"),
    (TouchOfAnotherVersionIsHeardOf, "above_a_limit_the_least_recent_ends", "came with another version"),
    (UpdateIsNotHeardOf, "above_a_limit_the_least_recent_ends", "who is active is signed out"),
    (LimitEndsAndDoesNotSay, "above_a_limit_the_least_recent_ends", "ended []"),
    (LimitSaysAndDoesNotEnd, "above_a_limit_the_least_recent_ends", "after a `create` above the limit"),
    (LimitEndsOnlyOne, "a_lowered_limit_ends_several_at_once", "ended 1 records, not the 4"),
    (LimitEndsTheNew, "a_lowered_limit_ends_several_at_once", "ended 1 records"),
    (LimitCountsExpired, "a_limit_counts_only_the_owners_live_records", "after expiry"),
    (LimitIsOfAllOwners, "a_limit_counts_only_the_owners_live_records", "is another owner's, counts"),
    (LimitIsOfVisitorsToo, "a_limit_counts_only_the_owners_live_records", "a visitor's record"),
    (LimitNeverRefuses, "a_limit_that_refuses_is_full", "more sessions than there may be"),
    (FullIsStored, "a_limit_that_refuses_is_full", "more sessions than there may be"),
    (LimitEndsWhenRepeated, "of_the_answers_of_a_create_the_first_is_given", "because of the limit"),
    (LimitEndsBeforeItIsLate, "of_the_answers_of_a_create_the_first_is_given", "`Late` ended a record"),
    (LimitEndsBeforeItIsTaken, "of_the_answers_of_a_create_the_first_is_given", "`Taken` ended a record"),
    (FullBeforeItIsLate, "of_the_answers_of_a_create_the_first_is_given", "is Full and not `Late`"),
    (FullBeforeItIsTaken, "of_the_answers_of_a_create_the_first_is_given", "is Full and not `Taken`"),
    (FullBeforeItIsDone, "of_the_answers_of_a_create_the_first_is_given", "is Full under"),
    (LimitForgetsWhatItEnded, "what_a_limit_has_ended_stays_ended", "brought back a record that a limit had ended"),
    (LimitEndsWhenRepeated, "what_a_limit_has_ended_stays_ended", "one login ends two sessions"),
    (LimitReadsThenWrites, "of_parallel_creates_no_more_than_the_limit_are_left", "under a limit of 5"),
    (LimitEndsByHalvesWhenDropped, "a_dropped_verb_is_all_or_nothing", "there are 1 records of 2"),
    (LeavesNothing, "a_create_ends_what_it_leaves", "after a `create` that left it"),
    (LeavesAnyVersion, "a_create_ends_what_it_leaves", "what was written is lost"),
    (LeavesGoneOnConflict, "a_create_ends_what_it_leaves", "says Gone of it"),
    (LeavesConflictUnstored, "a_create_ends_what_it_leaves", "who is signed in is signed out"),
    (LeavesAndDoesNotSay, "a_create_ends_what_it_leaves", "that it was to leave alone, after `NotTried`"),
    (LeavesAnotherForGood, "a_create_ends_what_it_leaves", "after another's end"),
    (LeavesBeforeItIsRefused, "what_a_create_leaves_ends_only_with_it", "after a `create` that was Late"),
    (LeavesOnlyOnceAndSaysDone, "a_repeated_create_ends_what_it_leaves", "after a `create` that left it"),
    (LeavesReadsThenWrites, "a_create_beside_a_write_to_what_it_leaves_loses_nothing", "what was written is lost"),
    (ScanForgetsVisitors, "a_scan_shows_all_that_is_live", "of no owner"),
    (ScanIsOnePage, "a_scan_shows_all_that_is_live", "in pages of 1 misses"),
    (ScanShowsThePayloadOfCreate, "a_scan_shows_all_that_is_live", "another payload"),
    (ScanShowsTheFullTime, "a_scan_shows_all_that_is_live", "more than the"),
    (ScanNeverEnds, "a_scan_shows_all_that_is_live", "goes on and on"),
    (ScanShowsExpired, "a_scan_shows_nothing_that_has_ended", "a session that is over"),
    (ScanGivesTime, "looking_gives_no_time", "was only looked at"),
    (ScanIsOfASnapshot, "what_lives_throughout_a_scan_is_in_it", "a page of a `scan` shows"),
    (ScanGoesByNumber, "what_a_scan_shows_can_be_ended_at_once", "who ends all sessions does not end all"),
    (ScanKeepsItsPlaceItself, "a_page_of_a_scan_can_be_asked_for_again", "misses a live record"),
    (CursorOfAnotherIsTheEnd, "a_cursor_of_another_is_an_error_or_begins", "that the backend never gave"),
    (CursorOfAnotherIsAnywhere, "a_cursor_of_another_is_an_error_or_begins", "that the backend never gave"),
    (ScanShowsAllAtOnce, "a_page_of_a_scan_is_about_as_long_as_asked", "all at once"),
    (CountsExpired, "a_count_is_that_of_the_live_records", "after some have expired"),
    (CountsOnlyOwners, "a_count_is_that_of_the_live_records", "with new records"),
    (CountMixesUp, "a_count_is_that_of_the_live_records", "with new records"),
];

/// A right backend, but for its flaw: records, and an index of what each owner has.
struct Wrong {
    flaw: Flaw,
    clock: OnceLock<Clock>,
    store: Arc<Mutex<Store>>,
    cache: Mutex<HashMap<RecordId, Record>>,
    /// Taken by a verb for as long as it runs.
    busy: Mutex<bool>,
}

#[derive(Default)]
struct Store {
    records: BTreeMap<String, Entry>,
    /// What was in a name last, for those that bring it back.
    dead: HashMap<RecordId, Entry>,
    barred: Vec<Owner>,
    clears: u64,
    last_clears: HashMap<Owner, LastClear>,
    heard: u64,
    /// The marks that a record was created with.
    used: Vec<Mark>,
    /// What a scan began with, and where it is.
    snapshot: BTreeMap<String, Entry>,
    place: Option<String>,
    /// The names of records that have ended.
    ended: HashSet<RecordId>,
}

#[derive(Clone, Copy)]
struct LastClear {
    name: i64,
    ended: u64,
    at: Duration,
}

#[derive(Clone)]
struct Entry {
    record: Record,
    first: Record,
    /// All versions before this one.
    versions: Vec<i64>,
    ends: Duration,
    /// A number that grows with each create, update and touch: that of the last one, and that of the create.
    heard: u64,
    created: u64,
    is_listed: bool,
}

impl Wrong {
    fn new(flaw: Flaw) -> Self {
        Self {
            flaw,
            clock: OnceLock::new(),
            store: Default::default(),
            cache: Mutex::default(),
            busy: Mutex::default(),
        }
    }

    fn beside(&self) -> Self {
        Self { store: self.store.clone(), ..Self::new(self.flaw) }
    }

    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == flaw
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap()
    }

    fn now(&self) -> Duration {
        self.clock.get_or_init(Clock::system).elapsed()
    }

    fn ends(&self, ttl: Duration) -> Duration {
        match self.flaw {
            WholeSecondsRoundedUp => self.now() + Duration::from_secs(ttl.as_millis().div_ceil(1000) as u64),
            TimesHave32Bits => self.now() + Duration::from_millis(u64::from(ttl.as_millis() as u32)),
            TimesOverflow => self.now() + ttl,
            NothingExpires if !ttl.is_zero() => Duration::MAX,
            _ => self.now().saturating_add(ttl),
        }
    }

    fn key(&self, id: RecordId) -> String {
        match self.flaw {
            OwnerIsNoPartOfTheName => id.sid().to_owned(),
            NamesIgnoreCase => id.to_string().to_lowercase(),
            NamesAreCutAt32 => {
                let (owner, sid) = (id.owner().map(|owner| owner.to_string()), id.sid());
                format!("{owner:?}.{}", &sid[..sid.len().min(32)])
            }
            _ => id.to_string(),
        }
    }

    fn payload(&self, record: &mut Record) {
        let payload = &record.payload;
        record.payload = match self.flaw {
            PayloadIsText => String::from_utf8_lossy(payload).into_owned().into(),
            PayloadIsTrimmed => payload.trim_ascii().to_vec().into(),
            PayloadEndsAtZero => payload.split(|byte| *byte == 0).next().unwrap_or_default().to_vec().into(),
            PayloadIsCutAt64KiB => payload.slice(..payload.len().min(1 << 16)),
            _ => return,
        };
    }

    fn is_live(&self, entry: &Entry) -> bool {
        entry.ends > self.now()
    }

    /// What is there and live.
    fn find(&self, store: &Store, id: RecordId) -> Option<Entry> {
        let entry =
            store.records.get(&self.key(id)).filter(|entry| self.is_live(entry) || self.has(ExpiryOnlyOnLoad))?;
        Some(entry.clone())
    }

    fn shown(&self, entry: &Entry) -> Record {
        lasting(entry.ends.saturating_sub(self.now()), entry.record.clone())
    }

    fn put(&self, store: &mut Store, mut record: Record, before: Option<&Entry>) {
        let mut ends = self.ends(record.ttl);
        let first = before.map_or_else(|| record.clone(), |before| before.first.clone());
        let versions = before.map_or_else(Vec::new, |before| [&before.versions[..], &[before.record.version]].concat());
        let mut is_listed = true;
        if let Some(before) = before {
            if self.has(UpdateKeepsTheTime) && !record.ttl.is_zero() {
                ends = before.ends;
            }
            if self.has(UpdateOnlyLengthens) && !record.ttl.is_zero() {
                ends = ends.max(before.ends);
            }
            if self.has(UpdateForNoTimeKeeps) && record.ttl.is_zero() {
                ends = before.ends;
            }
            if self.has(UpdateAddsWithoutPayloadLimit) && record.payload.is_empty() {
                record.payload = before.record.payload.clone();
            }
            is_listed = !self.has(UpdateLosesTheIndex);
        } else if self.has(CreateIsNotListed) {
            is_listed = false;
        }
        self.payload(&mut record);
        if ends > self.now() {
            store.heard += 1;
            let created = before.map_or(store.heard, |before| before.created);
            let heard = match before {
                Some(before) if self.has(UpdateIsNotHeardOf) => before.heard,
                _ => store.heard,
            };
            let entry = Entry { record, first, versions, ends, heard, created, is_listed };
            store.records.insert(self.key(entry.record.id), entry);
        } else {
            self.end(store, record.id);
        }
    }

    /// Whether a new record of that name comes too late.
    fn is_late(&self, store: &Store, since: &Since, id: RecordId) -> bool {
        let last = match self.flaw {
            CreateIgnoresSince => None,
            ClearIsOfEveryOwner => store.last_clears.values().next(),
            _ => id.owner().and_then(|owner| store.last_clears.get(&owner)),
        };
        let age = match since {
            Since::Age(age) => age,
            Since::Mark(mark) => return self.is_past(*mark, last),
            other => panic!("it is {other:?}"),
        };
        let is_too_old = match self.flaw {
            CreateTakesAnyAge => false,
            CreateTakesAnyAgeOfVisitors if id.owner().is_none() => false,
            _ => *age > Duration::from_secs(900),
        };
        let is_since = |last: &LastClear| match (self.flaw, self.now() - last.at) {
            (CreateIsLateForEver, _) => true,
            (CreateAsOldAsTheClearIsLate, since) => since <= *age,
            (ClearIsForgottenAfterTenMinutes, since) if since > TEN_MINUTES => false,
            (_, since) => since < *age,
        };
        is_too_old || last.is_some_and(is_since)
    }

    /// Whether there was a clear since that mark, or it is too old.
    fn is_past(&self, mark: Mark, last: Option<&LastClear>) -> bool {
        let taken = Duration::from_millis(mark.taken);
        let last = last.filter(|last| match self.flaw {
            ClearIsForgottenAfterTwentyMinutes => self.now() - last.at <= TEN_MINUTES * 2,
            _ => true,
        });
        let changed = match mark.clear {
            _ if self.has(CreateIgnoresMarks) => false,
            _ if self.has(CreateGoesByTheTimeOfMarks) => last.is_some_and(|last| last.at > taken),
            Some(name) => last.is_none_or(|last| last.name != name),
            None => last.is_some_and(|last| self.now() - last.at < GOOD) && !self.has(CreateTakesAnyMarkOfNoClear),
        };
        let good = match self.flaw {
            CreateTakesAnyOldMark => Duration::MAX,
            CreateTakesMarksForTenMinutes => TEN_MINUTES,
            _ => GOOD,
        };
        let opening = if self.has(MarksAreOfNoOpening) { mark.opening } else { OPENING };
        changed || self.now().saturating_sub(taken) > good || mark.opening != opening
    }

    /// Ends what a new record leaves.
    fn leave(&self, store: &mut Store, leaves: Option<(RecordId, i64)>) -> Left {
        let Some((id, version)) = leaves else { return Left::NotTried };
        match self.find(store, id) {
            _ if self.has(LeavesForTheCallerToDo) => Left::NotTried,
            None => Left::Gone,
            Some(_) if self.has(LeavesNothing) => Left::Done,
            Some(there) if there.record.version != version && !self.has(LeavesAnyVersion) => match self.flaw {
                LeavesGoneOnConflict => Left::Gone,
                _ => Left::Conflict(self.shown(&there)),
            },
            Some(_) => {
                self.end(store, id);
                if self.has(LeavesAnotherForGood) {
                    let visitors = store.records.values().map(|entry| entry.record.id);
                    let visitor = visitors.filter(|id| id.owner().is_none()).last();
                    visitor.into_iter().for_each(|id| self.end(store, id));
                }
                if self.has(LeavesAndDoesNotSay) { Left::NotTried } else { Left::Done }
            }
        }
    }

    /// All live ones that are meant, the one that was heard of longest ago first.
    fn by_age(&self, store: &Store, are_meant: impl Fn(Option<Owner>) -> bool) -> Vec<RecordId> {
        let is_counted = |entry: &&Entry| self.is_live(entry) || self.has(LimitCountsExpired);
        let mut all: Vec<_> = store.records.values().filter(is_counted).collect();
        all.retain(|entry| are_meant(entry.record.id.owner()));
        all.sort_by_key(|entry| if self.has(LimitEndsTheOldest) { entry.created } else { entry.heard });
        all.into_iter().map(|entry| entry.record.id).collect()
    }

    /// All of these are heard of, the newest first: that is the order that changes most.
    fn hears(&self, store: &mut Store, are_meant: impl Fn(Option<Owner>) -> bool) {
        for id in self.by_age(store, are_meant).into_iter().rev() {
            store.heard += 1;
            let heard = store.heard;
            store.records.entry(self.key(id)).and_modify(|entry| entry.heard = heard);
        }
    }

    /// What ends above the limit when that record is created; `None` if it is full.
    fn above(&self, store: &Store, id: RecordId, limit: Limit) -> Option<Vec<RecordId>> {
        let others = match (self.flaw, id.owner()) {
            (LimitIsOfAllOwners, _) => self.by_age(store, |owner| owner.is_some()),
            (LimitIsOfVisitorsToo, owner) => self.by_age(store, |of| of == owner),
            (_, None) => return Some(Vec::new()),
            (_, owner) => self.by_age(store, |of| of == owner),
        };
        match limit {
            Limit::None => Some(Vec::new()),
            _ if self.has(LimitIsIgnored) => Some(Vec::new()),
            Limit::Refuse(most) if !self.has(LimitNeverRefuses) => (others.len() < most).then(Vec::new),
            Limit::Refuse(most) | Limit::LeastRecent(most) => {
                let ends = (others.len() + 1).saturating_sub(most + usize::from(self.has(LimitIsOneMore)));
                let ends = if self.has(LimitEndsOnlyOne) { ends.min(1) } else { ends };
                Some(others.into_iter().take(ends).collect())
            }
        }
    }

    /// Why a clear by that record ends nothing, if so.
    fn refusal(&self, store: &Store, owner: Owner, by: By) -> Option<Cleared> {
        let is_owners = |entry: &Entry| match self.flaw {
            ClearIsByAnySid => true,
            _ => entry.record.id.owner() == Some(owner),
        };
        match self.find(store, by.id).filter(is_owners) {
            Some(there) if there.record.version != by.version && self.has(ClearIsGoneOnConflict) => Some(Cleared::Gone),
            Some(_) if self.has(ClearIgnoresTheVersion) => None,
            None if self.has(ClearIsByWhatHasEnded) && store.ended.contains(&by.id) => None,
            None => Some(Cleared::Gone),
            Some(there) if there.record.version != by.version => Some(Cleared::Conflict(self.shown(&there))),
            Some(_) => None,
        }
    }

    fn end(&self, store: &mut Store, id: RecordId) {
        if let Some(entry) = store.records.remove(&self.key(id)) {
            store.dead.insert(id, entry);
            store.ended.insert(id);
        }
    }

    /// Where a scan goes on.
    fn place(&self, after: &Cursor) -> backend::Result<String> {
        let text = String::from_utf8(after.as_bytes().into())?;
        match self.flaw {
            ScanGoesByNumber | CursorOfAnotherIsAnywhere => Ok(text),
            _ => Ok(text.parse::<RecordId>().map(|_| text)?),
        }
    }

    /// Runs a verb, one at a time where that can be got wrong.
    async fn verb<T>(&self, verb: impl Future<Output = backend::Result<T>>) -> backend::Result<T> {
        if !self.has(TheLockIsLostWhenDropped) {
            return verb.await;
        }
        if std::mem::replace(&mut *self.busy.lock().unwrap(), true) {
            return Err("the connection is busy".into());
        }
        pause().await;
        let answer = verb.await;
        *self.busy.lock().unwrap() = false;
        answer
    }
}

fn versions_equal(flaw: Flaw, a: i64, b: i64) -> bool {
    match flaw {
        UpdateComparesAsDouble => a as f64 == b as f64,
        UpdateComparesHalfOfTheVersion => a as u32 == b as u32,
        UpdateIgnoresTheVersion => true,
        _ => a == b,
    }
}

impl Backend for Wrong {
    async fn load(&self, id: RecordId) -> backend::Result<Option<Record>> {
        self.verb(async {
            if self.has(EachHandleHasACache)
                && let Some(cached) = self.cache.lock().unwrap().get(&id)
            {
                return Ok(Some(cached.clone()));
            }
            let mut store = self.store();
            let found = store.records.get(&self.key(id)).cloned();
            if let Some(entry) = &found
                && !self.is_live(entry)
            {
                self.end(&mut store, id);
                return Ok(None);
            }
            if self.has(LoadIsHeardOf) {
                self.hears(&mut store, |owner| owner == id.owner());
            }
            if self.has(LoadGivesTime)
                && let Some(entry) = store.records.get_mut(&self.key(id))
            {
                entry.ends = self.now() + entry.record.ttl;
                return Ok(Some(entry.record.clone()));
            }
            let record = found.map(|entry| self.shown(&entry));
            if let Some(record) = &record {
                self.cache.lock().unwrap().insert(id, record.clone());
            }
            Ok(record.filter(|record| !self.has(PayloadOfNothingIsNothing) || !record.payload.is_empty()))
        })
        .await
    }

    async fn create(&self, record: Record, terms: Terms) -> backend::Result<Created> {
        self.verb(async {
            let Terms { since, limit, leaves, retry } = &terms;
            let there = {
                let store = self.store();
                match self.has(CreateRefusesWhatExpired) {
                    true => store.records.get(&self.key(record.id)).cloned(),
                    false => self.find(&store, record.id),
                }
            };
            let clears = self.store().clears;
            let was_late = since.as_ref().is_some_and(|since| self.is_late(&self.store(), since, record.id));
            let is_over_expired = self.has(CreateOverExpiredReadsThenWrites)
                && there.is_none()
                && self.store().records.contains_key(&self.key(record.id));
            let was_above = self.above(&self.store(), record.id, *limit);
            let visitor = leaves.and_then(|(id, _)| self.find(&self.store(), id));
            if self.has(LimitEndsByHalvesWhenDropped) {
                was_above.iter().flatten().for_each(|id| self.end(&mut self.store(), *id));
            }
            let waits = matches!(
                self.flaw,
                CreateReadsThenWrites
                    | CreateEntersTheIndexFirst
                    | CreateLooksAtClearsFirst
                    | LimitEndsByHalvesWhenDropped
                    | LimitReadsThenWrites
                    | LeavesReadsThenWrites
            );
            if waits || is_over_expired {
                pause().await;
            }
            let mut store = self.store();
            let there = if self.has(CreateReadsThenWrites) || is_over_expired || self.has(CreateRefusesWhatExpired) {
                there
            } else {
                self.find(&store, record.id)
            };
            let above = match self.flaw {
                LimitReadsThenWrites | LimitEndsByHalvesWhenDropped => was_above,
                _ => self.above(&store, record.id, *limit),
            };
            let is_own = there.as_ref().is_some_and(|entry| entry.record.version == record.version);
            let ends_early = match self.flaw {
                LimitEndsWhenRepeated => is_own,
                LimitEndsBeforeItIsLate => !is_own,
                LimitEndsBeforeItIsTaken => !is_own && since.is_none() && there.is_some(),
                _ => false,
            };
            if ends_early {
                let ended: Vec<_> = above.iter().flatten().filter(|id| **id != record.id).collect();
                ended.into_iter().for_each(|id| self.end(&mut store, *id));
            }
            if self.has(LeavesBeforeItIsRefused) {
                drop(self.leave(&mut store, *leaves));
            }
            let is_late = match self.flaw {
                CreateLooksAtClearsFirst => was_late,
                RetriedCreateIsNeverLate if *retry => false,
                _ => since.as_ref().is_some_and(|since| self.is_late(&store, since, record.id)),
            };
            if is_late && self.has(CreateIsLateThoughItIsThere) {
                return Ok(Created::Late);
            }
            match self.flaw {
                FullBeforeItIsDone if above.is_none() => return Ok(Created::Full),
                FullBeforeItIsLate if above.is_none() && !is_own => return Ok(Created::Full),
                RetriedCreateIsAlwaysAnError if *retry => return Err("it may have been made".into()),
                CreateOverwritesItsOwnVersion | CreateOfItsOwnIsTaken => {}
                _ if is_own => {
                    let left = match leaves {
                        Some(_) if self.has(LeavesOnlyOnceAndSaysDone) => Left::Done,
                        _ => self.leave(&mut store, *leaves),
                    };
                    return Ok(Created::Done { ended: Vec::new(), left });
                }
                CreateIsTakenBeforeItIsLate if there.is_some() => return Ok(Created::Taken),
                CreateStoresWhatIsLate if is_late => {
                    self.put(&mut store, record, None);
                    return Ok(Created::Late);
                }
                _ => {}
            }
            if is_late {
                return Ok(Created::Late);
            }
            if let Some(Since::Mark(mark)) = since
                && self.has(CreateTakesAMarkOnce)
            {
                if store.used.contains(mark) {
                    return Ok(Created::Late);
                }
                store.used.push(*mark);
            }
            if *retry {
                match self.flaw {
                    RetriedCreateIsAnErrorIfNothingIsThere if there.is_none() => {
                        return Err("it may have been made".into());
                    }
                    RetriedCreateStoresNothing => return Ok(Created::done()),
                    RetriedCreateStoresAndFails if there.is_none() => {
                        self.put(&mut store, record, None);
                        return Err("it may have been made".into());
                    }
                    RetriedCreateRevives => {}
                    _ if there.is_some() => {}
                    _ if !store.ended.contains(&record.id) && !store.records.contains_key(&self.key(record.id)) => {}
                    RetriedCreateIsDoneThoughItEnded => return Ok(Created::done()),
                    _ => return Err("it may have been made and ended".into()),
                }
            }
            if self.has(FullBeforeItIsTaken) && above.is_none() {
                return Ok(Created::Full);
            }
            if let Some(entry) = there {
                let key = self.key(record.id);
                let is_own = entry.record.version == record.version || entry.first.version == record.version;
                match self.flaw {
                    CreateOverwrites => {}
                    CreateOverwritesItsOwnVersion if is_own => {}
                    CreateTouchesWhatIsThere => {
                        let ends = entry.ends.max(self.ends(record.ttl));
                        store.records.insert(key, Entry { ends, ..entry });
                        return Ok(Created::Taken);
                    }
                    CreateOfTakenChangesTheIndex => {
                        store.records.insert(key, Entry { is_listed: false, ..entry });
                        return Ok(Created::Taken);
                    }
                    _ => return Ok(Created::Taken),
                }
            }
            if record.id.owner().is_some_and(|owner| store.barred.contains(&owner)) {
                return Ok(Created::done());
            }
            let Some(mut ended) = above else {
                if self.has(FullIsStored) {
                    self.put(&mut store, record, None);
                }
                return Ok(Created::Full);
            };
            let (id, key) = (record.id, self.key(record.id));
            self.put(&mut store, record, None);
            if self.has(CreateEntersTheIndexFirst) && store.clears != clears {
                store.records.entry(key).and_modify(|entry| entry.is_listed = false);
            }
            if self.has(LimitEndsTheNew) && !ended.is_empty() {
                ended = vec![id];
            }
            if !self.has(LimitSaysAndDoesNotEnd) {
                ended.iter().for_each(|id| self.end(&mut store, *id));
            }
            match self.flaw {
                LimitForgetsWhatItEnded => store.ended.clear(),
                LimitEndsAndDoesNotSay => ended.clear(),
                _ => {}
            }
            let left = match (visitor, leaves) {
                (Some(visitor), Some((leaves, version)))
                    if self.has(LeavesReadsThenWrites) && visitor.record.version == *version =>
                {
                    self.end(&mut store, *leaves);
                    Left::Done
                }
                _ => self.leave(&mut store, *leaves),
            };
            if self.has(LeavesConflictUnstored) && matches!(left, Left::Conflict(_)) {
                self.end(&mut store, id);
            }
            Ok(Created::Done { ended, left })
        })
        .await
    }

    async fn update(&self, expected: i64, record: Record, retry: bool) -> backend::Result<Outcome> {
        self.verb(async {
            let mut there = self.find(&self.store(), record.id);
            if self.has(UpdateReadsThenWrites) {
                pause().await;
            }
            let mut store = self.store();
            if !self.has(UpdateReadsThenWrites) {
                there = self.find(&store, record.id);
            }
            if self.has(UpdateInsertsWhatExpired) {
                there = store.records.get(&self.key(record.id)).cloned();
            }
            let Some(there) = there else {
                let inserts = match self.flaw {
                    UpdateInserts => true,
                    UpdateOfZeroInserts => expected == 0,
                    RetriedUpdateInserts => retry,
                    _ => false,
                };
                if inserts {
                    self.put(&mut store, record, None);
                }
                return Ok(Outcome::Gone);
            };
            if retry && self.has(RetriedUpdateIsNeverWritten) && there.record.version == expected {
                return Err("it may have been written".into());
            }
            let overwrites = match self.flaw {
                UpdateForNoTimeIgnoresTheVersion => record.ttl.is_zero(),
                RetriedUpdateIsWrittenOverAnything => retry,
                _ => false,
            };
            if !versions_equal(self.flaw, there.record.version, expected) && !overwrites {
                return Ok(match self.flaw {
                    RetriedUpdateOfItsOwnIsAConflict | RetriedUpdateForgetsItsVersion
                        if retry
                            && (there.record.version != record.version
                                || self.has(RetriedUpdateOfItsOwnIsAConflict)) =>
                    {
                        Outcome::Conflict(self.shown(&there))
                    }
                    RetriedUpdateIsAlwaysDone if retry => Outcome::Done,
                    UpdateIsAlwaysGoneOnConflict => Outcome::Gone,
                    UpdateTakesItsOwnVersionForGone if there.record.version == record.version => Outcome::Gone,
                    UpdateIsAppliedAgainLater if there.first.version == expected => {
                        self.put(&mut store, record, Some(&there));
                        Outcome::Done
                    }
                    ConflictShowsWhatWasThereFirst => Outcome::Conflict(there.first),
                    ConflictShowsTheOfferedTime => {
                        Outcome::Conflict(lasting(record.ttl.max(there.record.ttl * 2), there.record))
                    }
                    _ if retry && there.record.version == record.version => Outcome::Done,
                    _ if retry && there.versions.contains(&record.version) => Outcome::Done,
                    _ => Outcome::Conflict(self.shown(&there)),
                });
            }
            self.cache.lock().unwrap().remove(&record.id);
            if self.has(VersionsAreNames) {
                for entry in store.records.values_mut().filter(|entry| entry.record.version == expected) {
                    let id = entry.record.id;
                    entry.record = record.clone();
                    entry.record.id = id;
                }
                return Ok(Outcome::Done);
            }
            self.put(&mut store, record, Some(&there));
            Ok(Outcome::Done)
        })
        .await
    }

    async fn touch(&self, id: RecordId, version: i64, ttl: Duration) -> backend::Result<()> {
        self.verb(async {
            let mut read = self.find(&self.store(), id);
            if self.has(TouchReadsThenWrites) {
                pause().await;
            }
            let mut store = self.store();
            if !self.has(TouchReadsThenWrites) {
                read = self.find(&store, id);
            }
            if self.has(TouchRevives) && read.is_none() {
                read = store.dead.get(&id).cloned();
            }
            if self.has(TouchRevivesWhatExpired) {
                read = store.records.get(&self.key(id)).cloned();
            }
            let Some(mut entry) = read else { return Ok(()) };
            if self.has(TouchOfAnotherVersionIsHeardOf) && entry.record.version != version {
                store.heard += 1;
                let heard = store.heard;
                store.records.entry(self.key(id)).and_modify(|entry| entry.heard = heard);
            }
            if (entry.record.version != version && !self.has(TouchIsUnconditional)) || self.has(TouchDoesNothing) {
                return Ok(());
            }
            entry.ends = match self.flaw {
                TouchOnlyLengthens => entry.ends.max(self.ends(ttl)),
                TouchAddsTime if !ttl.is_zero() => entry.ends.saturating_add(ttl),
                _ => self.ends(ttl),
            };
            if self.has(TouchWritesANewVersion) {
                entry.record.version ^= 1;
            }
            if !self.has(TouchIsNotHeardOf) {
                store.heard += 1;
                entry.heard = store.heard;
            }
            entry.is_listed &= !self.has(TouchForgetsTheIndex);
            match entry.ends > self.now() {
                true => _ = store.records.insert(self.key(id), entry),
                false => self.end(&mut store, id),
            }
            Ok(())
        })
        .await
    }

    async fn delete(&self, id: RecordId) -> backend::Result<bool> {
        self.verb(async {
            let key = self.key(id);
            if self.has(DeleteIsByHalvesWhenDropped) {
                if let Some(entry) = self.store().records.get_mut(&key) {
                    entry.is_listed = false;
                }
                pause().await;
            }
            let mut store = self.store();
            let was_live = self.find(&store, id).is_some();
            if self.has(DeleteForgetsAnonymous) && id.owner().is_none() {
                return Ok(was_live);
            }
            self.end(&mut store, id);
            Ok(was_live || self.has(DeleteIsAlwaysTrue))
        })
        .await
    }

    async fn list(&self, owner: Owner) -> backend::Result<Vec<Record>> {
        self.verb(async {
            let mut store = self.store();
            if self.has(ListIsHeardOf) {
                self.hears(&mut store, |of| of == Some(owner));
            }
            let is_shown = |entry: &&Entry| {
                let is_live = self.is_live(entry) || self.has(ListShowsExpired) || self.has(ExpiryOnlyOnLoad);
                is_live && entry.is_listed && (entry.record.id.owner() == Some(owner) || self.has(ListIgnoresTheOwner))
            };
            let entries = store.records.values().filter(is_shown);
            let dead = store.dead.values().filter(|entry| self.has(DeleteLeavesTheIndex) && is_shown(entry));
            let mut all: Vec<Record> = entries
                .chain(dead)
                .map(|entry| match self.flaw {
                    ListShowsThePayloadOfCreate => {
                        let mut shown = self.shown(entry);
                        shown.payload = entry.first.payload.clone();
                        shown
                    }
                    ListShowsTheFullTime => entry.record.clone(),
                    _ => self.shown(entry),
                })
                .collect();
            if self.has(ListIsCutAtAHundred) {
                all.truncate(100);
            }
            Ok(all)
        })
        .await
    }

    async fn clear(&self, owner: Owner, clear: Clear) -> backend::Result<Cleared> {
        self.verb(async {
            let Clear { name, by } = clear;
            let keep = by.filter(|by| by.keep || self.has(ClearAlwaysKeepsWhatItIsBy)).map(|by| by.id);
            {
                let mut store = self.store();
                let refusal = by.and_then(|by| self.refusal(&store, owner, by));
                if let Some(refusal) = refusal.clone().filter(|_| self.has(ClearLooksAtTheRecordBeforeTheName)) {
                    return Ok(refusal);
                }
                let is_repeat = |last: &&LastClear| last.name == name || self.has(ClearIsAlwaysARepeat);
                let last = store.last_clears.get(&owner).filter(is_repeat).filter(|_| !self.has(ClearIsMadeAgain));
                if let Some(last) = last {
                    return Ok(Cleared::Done(if self.has(ClearCountsNothingWhenRepeated) { 0 } else { last.ended }));
                }
                if let Some(refusal) = refusal {
                    let of_owner = store.records.values().map(|entry| entry.record.id);
                    let of_owner: Vec<_> = of_owner.filter(|id| id.owner() == Some(owner)).collect();
                    let ends = match (self.flaw, &refusal) {
                        (ClearEndsTheOthersOnConflict, Cleared::Conflict(there)) => Some(there.id),
                        (ClearEndsAllWhenGone, Cleared::Gone) => by.map(|by| by.id),
                        _ => None,
                    };
                    if ends.is_some() {
                        of_owner.into_iter().filter(|id| Some(*id) != ends).for_each(|id| self.end(&mut store, id));
                    }
                    if self.has(ClearIsRememberedWhenRefused) {
                        store.last_clears.insert(owner, LastClear { name, ended: 0, at: self.now() });
                    }
                    return Ok(refusal);
                }
            }
            let kept = match self.flaw {
                ClearIgnoresKeep => None,
                _ => keep,
            };
            let like_kept = |id: RecordId| match self.flaw {
                UnderscoreIsAnyCharacter => kept.is_some_and(|kept| is_like(kept.sid(), id.sid())),
                _ => kept == Some(id),
            };
            let is_owners = |id: RecordId| match self.flaw {
                ClearEndsAnonymousToo => id.owner().is_none_or(|of| of == owner),
                _ => id.owner() == Some(owner),
            };
            let of = |store: &Store| -> Vec<Entry> {
                store.records.values().filter(|entry| is_owners(entry.record.id)).cloned().collect()
            };
            if self.has(ClearIsByHalvesWhenDropped) || self.has(ClearListsThenDeletes) {
                let (all, mut ended) = (of(&self.store()), 0);
                for entry in all.into_iter().filter(|entry| keep != Some(entry.record.id)) {
                    pause().await;
                    let mut store = self.store();
                    let there = self.find(&store, entry.record.id);
                    let is_same = there.as_ref().is_some_and(|there| there.record.version == entry.record.version);
                    if is_same || (there.is_some() && self.has(ClearIsByHalvesWhenDropped)) {
                        ended += 1;
                        self.end(&mut store, entry.record.id);
                    }
                }
                let at = self.now();
                self.store().last_clears.insert(owner, LastClear { name, ended, at });
                return Ok(Cleared::Done(ended));
            }
            let mut ended = 0;
            let mut store = self.store();
            let all = of(&store);
            store.clears += 1;
            let newest = all.iter().map(|entry| entry.record.id).next_back();
            for entry in all {
                let id = entry.record.id;
                if like_kept(id) {
                    ended += u64::from(self.has(ClearCountsKeep));
                    let ends = match self.flaw {
                        ClearKeepsForLonger => self.ends(entry.record.ttl * 2),
                        _ => continue,
                    };
                    store.records.insert(self.key(id), Entry { ends, ..entry });
                    continue;
                }
                if self.has(ClearForgetsTheNewest) && Some(id) == newest {
                    continue;
                }
                ended += u64::from(self.is_live(&entry) || self.has(ClearCountsExpired) || self.has(ExpiryOnlyOnLoad));
                self.end(&mut store, id);
            }
            if self.has(ClearBarsWhatComesAfter) {
                store.barred.push(owner);
            }
            let is_forgotten = match self.flaw {
                ClearOfNothingIsForgotten => ended == 0,
                ClearThatKeepsIsForgotten => keep.is_some(),
                _ => false,
            };
            if !is_forgotten {
                store.last_clears.insert(owner, LastClear { name, ended, at: self.now() });
            }
            Ok(Cleared::Done(ended))
        })
        .await
    }

    async fn mark(&self, owner: Owner) -> backend::Result<Mark> {
        self.verb(async {
            let mut store = self.store();
            let now = self.now();
            let last = store.last_clears.get(&owner).filter(|last| match self.flaw {
                MarkNamesNothing => false,
                MarkNamesOldClears => true,
                _ => now - last.at <= GOOD,
            });
            let mark = Mark::new(last.map(|last| last.name), now.as_millis() as u64).with_opening(OPENING);
            if self.has(MarkIsAClear) {
                let name = i64::MAX - store.last_clears.len() as i64;
                store.last_clears.insert(owner, LastClear { name, ended: 0, at: now });
            }
            Ok(mark)
        })
        .await
    }

    async fn scan(&self, after: Option<Cursor>, most: usize) -> backend::Result<Page> {
        self.verb(async {
            // Every other one is empty.
            let after = match (self.flaw, after) {
                (ScanHasEmptyPages, None) => {
                    return Ok(Page { next: Some(Cursor::new("+")), ..Page::default() });
                }
                (ScanHasEmptyPages, Some(after)) => match after.as_bytes().split_first() {
                    Some((b'+', [])) => None,
                    Some((b'+', after)) => Some(Cursor::new(after.to_vec())),
                    _ => {
                        let next = Some(Cursor::new([b"+", after.as_bytes()].concat()));
                        self.place(&after)?;
                        return Ok(Page { next, ..Page::default() });
                    }
                },
                (_, after) => after,
            };
            let mut store = self.store();
            match self.flaw {
                ScanIsHeardOf if after.is_none() => self.hears(&mut store, |_| true),
                ScanGivesTime => {
                    for entry in store.records.values_mut().filter(|entry| self.is_live(entry)) {
                        entry.ends = self.now() + entry.record.ttl;
                    }
                }
                ScanIsOfASnapshot if after.is_none() => store.snapshot = store.records.clone(),
                _ => {}
            }
            let is_first = after.is_none();
            let mut place = match after.map(|after| self.place(&after)).transpose() {
                Err(_) if self.has(CursorOfAnotherIsTheEnd) => return Ok(Page::default()),
                Err(_) if self.has(CursorOfAnotherBegins) => None,
                place => place?,
            };
            if self.has(ScanKeepsItsPlaceItself) && !is_first {
                place = store.place.clone();
            }
            let records = if self.has(ScanIsOfASnapshot) { &store.snapshot } else { &store.records };
            let (skipped, from) = match (self.flaw, place) {
                (ScanGoesByNumber, Some(number)) => (number.parse()?, Bound::Unbounded),
                (_, place) => (0, place.map_or(Bound::Unbounded, Bound::Excluded)),
            };
            let many = match self.flaw {
                ScanShowsAllAtOnce => usize::MAX,
                _ => most,
            };
            let page: Vec<_> = records.range((from, Bound::Unbounded)).skip(skipped).take(many).collect();
            let last = page.last().map(|(key, _)| (*key).clone());
            let next = match self.flaw {
                ScanIsOnePage => None,
                ScanNeverEnds => last.clone().or_else(|| records.keys().next().cloned()),
                ScanGoesByNumber => last.clone().map(|_| (skipped + page.len()).to_string()),
                _ => last.clone(),
            };
            let shown: Vec<Record> = page
                .into_iter()
                .map(|(_, entry)| entry)
                .filter(|entry| self.is_live(entry) || self.has(ScanShowsExpired))
                .filter(|entry| !self.has(ScanForgetsVisitors) || entry.record.id.owner().is_some())
                .map(|entry| match self.flaw {
                    ScanShowsThePayloadOfCreate => {
                        let mut shown = self.shown(entry);
                        shown.payload = entry.first.payload.clone();
                        shown
                    }
                    ScanShowsTheFullTime => entry.record.clone(),
                    _ => self.shown(entry),
                })
                .collect();
            let records = match self.flaw {
                ScanShowsTwice => [&shown[..], &shown[..]].concat(),
                _ => shown,
            };
            store.place = last;
            Ok(Page { records, next: next.map(Cursor::new), moved: false })
        })
        .await
    }

    async fn count(&self) -> backend::Result<Count> {
        self.verb(async {
            let store = self.store();
            let all = store.records.values().filter(|entry| self.is_live(entry) || self.has(CountsExpired));
            let (owned, visitors): (Vec<_>, Vec<_>) = all.partition(|entry| entry.record.id.owner().is_some());
            let (owned, visitors) = (owned.len() as u64, visitors.len() as u64);
            Ok(match self.flaw {
                CountsOnlyOwners => Count::new(owned, 0),
                CountMixesUp => Count::new(visitors, owned),
                _ => Count::new(owned, visitors),
            })
        })
        .await
    }

    fn set_clock(&self, clock: Clock) {
        let _ = self.clock.set(clock);
    }
}

/// How long a mark is good.
const GOOD: Duration = Duration::from_secs(900);
const TEN_MINUTES: Duration = Duration::from_secs(600);

/// It forgets its clears when it is closed.
const OPENING: i64 = 17;

/// Time for others to come in between.
async fn pause() {
    for _ in 0..3 {
        yield_now().await;
    }
}

/// As SQL's `LIKE`, as far as `_` goes.
fn is_like(pattern: &str, text: &str) -> bool {
    pattern.len() == text.len() && pattern.bytes().zip(text.bytes()).all(|(p, t)| p == b'_' || p == t)
}

fn subject(flaw: Flaw) -> Subject<Wrong> {
    let one = Wrong::new(flaw);
    let other = one.beside();
    Subject::new(one).shared_with(other)
}

/// What that promise says when it is broken.
async fn examine(promise: &Promise<Wrong>, flaw: Flaw) -> Result<(), String> {
    let subject = subject(flaw);
    match AssertUnwindSafe(promise.check(&subject)).catch_unwind().await {
        Ok(()) => Ok(()),
        Err(panic) => Err(match panic.downcast::<String>() {
            Ok(words) => *words,
            Err(panic) => panic.downcast_ref::<&str>().copied().unwrap_or_default().to_owned(),
        }),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_flaw_it_keeps_every_promise() {
    for promise in Promise::all() {
        for allowed in ALLOWED {
            assert_eq!(examine(&promise, allowed).await, Ok(()), "{}, {allowed:?}", promise.name());
        }
    }
}

/// On one thread, where tasks take turns in an order that is the same each time: what is caught is so in every run.
#[tokio::test]
async fn every_flaw_is_caught_by_the_promise_that_it_breaks_and_in_words_that_fit() {
    let promises = Promise::all();
    let mut missed = Vec::new();
    for (flaw, name, words) in CAUGHT {
        let promise = promises.iter().find(|promise| promise.name() == *name).expect("there is such a promise");
        match examine(promise, *flaw).await {
            Err(said) if said.contains(words) => {}
            other => missed.push(format!("{flaw:?}: {name} says {other:?}, not {words:?}")),
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
    for promise in &promises {
        assert!(CAUGHT.iter().any(|(_, name, _)| *name == promise.name()), "nothing breaks {}", promise.name());
    }
}
