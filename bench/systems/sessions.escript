#!/usr/bin/env escript
%% -*- erlang -*-
%%! +fnu
%% Sessions in ETS, DETS and Mnesia, driven from within the virtual machine that holds them, because that is how
%% an Erlang program uses them. One command a line on standard input, one answer a line on standard output:
%%
%%     fill SESSIONS BYTES               -> ok
%%     run MIX CALLS CALLERS SKEW FILE   -> {"seconds": S, "units": N}, latencies in ns as 64 bits each in FILE
%%                                          MIX: get=0.5,update=0.5; SKEW: even or zipf
%%     follow NODE                       -> ok; Mnesia: from now on this node has a copy on that one
%%     write                             -> ok, or no; Mnesia: one transaction
%%     some                              -> the id of a session that fill has made
%%     stop                              -> ok; DETS, Mnesia: in order
%%     start ID                          -> S: seconds to open what the directory has, and to get this session
%%
%% Arguments: ENGINE (ets, ets_server, dets, mnesia), DIRECTORY, SYNC (sync: flushed to disk before the answer),
%% WHEN (now: opened at once; later: by `start`).
-module(sessions).
-mode(compile).
-behaviour(gen_server).
-export([main/1, init/1, handle_call/3, handle_cast/2]).

-define(LIFETIME_MS, 3600000).
-define(BATCH, 100).
-define(EXPONENT, 0.99).

main([Engine, Directory, Sync, When]) ->
    logger:set_primary_config(level, error),
    E = {list_to_atom(Engine), Sync =:= "sync"},
    persistent_term:put(directory, Directory),
    When =:= "now" andalso open(E, Directory),
    persistent_term:put(value, value(200)),
    answer("ready"),
    serve(E).

serve(E) ->
    case io:get_line("") of
        eof ->
            halt(0);
        Line ->
            answer(command(E, string:lexemes(string:trim(Line), " "))),
            serve(E)
    end.

answer(Text) -> io:format("~s~n", [Text]).

command(E, ["fill", Sessions, Bytes]) ->
    clear(E),
    Value = value(list_to_integer(Bytes)),
    persistent_term:put(value, Value),
    Ids = fill(E, list_to_integer(Sessions), []),
    persistent_term:put(ids, list_to_tuple(Ids)),
    {Sums, _} = lists:mapfoldl(
        fun(Rank, Sum) ->
            Next = Sum + math:pow(Rank, -?EXPONENT),
            {Next, Next}
        end,
        0.0,
        lists:seq(1, length(Ids))
    ),
    persistent_term:put(sums, list_to_tuple(Sums)),
    erlang:garbage_collect(),
    "ok";
command(E, ["run", Mix, Calls, Callers, Skew, File]) ->
    put(skew, Skew),
    {Ns, Units, Latencies} = run(E, mix(Mix), list_to_integer(Calls), list_to_integer(Callers)),
    ok = file:write_file(File, << <<L:64/little>> || L <- Latencies >>),
    io_lib:format("{\"seconds\": ~.9f, \"units\": ~b}", [Ns / 1.0e9, Units]);
command(_, ["follow", Node]) ->
    follow(list_to_atom(Node)),
    persistent_term:put(transaction, sync_transaction),
    "ok";
command(E, ["write"]) ->
    try store(E, session(persistent_term:get(value))) of
        ok -> "ok"
    catch
        _:_ -> "no"
    end;

command(_, ["some"]) ->
    Ids = persistent_term:get(ids),
    element(tuple_size(Ids) div 2 + 1, Ids);
command({dets, _}, ["stop"]) ->
    ok = dets:close(session),
    "ok";
command({mnesia, _}, ["stop"]) ->
    stopped = mnesia:stop(),
    "ok";
command(E, ["start", Id]) ->
    Started = erlang:monotonic_time(nanosecond),
    open_again(E, persistent_term:get(directory)),
    [_] = lookup(E, list_to_binary(Id)),
    io_lib:format("~.9f", [(erlang:monotonic_time(nanosecond) - Started) / 1.0e9]).

%% The operation, if it is one; else each with the sum of its share and of those before it.
mix(Text) ->
    Parts = [string:split(Part, "=") || Part <- string:lexemes(Text, ",")],
    case Parts of
        [[Operation, _]] ->
            list_to_atom(Operation);
        _ ->
            {Sums, _} = lists:mapfoldl(
                fun([Operation, Share], Sum) ->
                    Next = Sum + list_to_float(Share),
                    {{Next, list_to_atom(Operation)}, Next}
                end,
                0.0,
                Parts
            ),
            Sums
    end.

%% -- sessions: {session, Id, Created, Accessed, Expires, Fields} ------------------------------------------------

%% Fields of about so many bytes as MessagePack or JSON would need.
value(Bytes) ->
    Fields = #{
        user_id => 12345,
        name => <<"a person of some name">>,
        roles => [<<"reader">>, <<"writer">>],
        csrf => <<"0123456789abcdef0123456789abcdef">>
    },
    Fields#{note => binary:copy(<<"x">>, max(0, Bytes - 120))}.

session(Value) -> session(Value, ?LIFETIME_MS).

%% Binaries of more than 64 bytes are shared: each session has its own, as sessions of different users have.
session(#{note := Note} = Value, Lifetime) ->
    Now = now_ms(),
    {session, new_id(), Now, Now, Now + Lifetime, Value#{note := binary:copy(Note)}}.

%% 128 random bits as text; read 256 at a time.
new_id() ->
    case get(random_ids) of
        [Id | Ids] ->
            put(random_ids, Ids),
            Id;
        _ ->
            Hex = binary:encode_hex(crypto:strong_rand_bytes(16 * 256)),
            put(random_ids, [binary:copy(Id) || <<Id:32/binary>> <= Hex]),
            new_id()
    end.

now_ms() -> erlang:system_time(millisecond).

fill(_, 0, Ids) ->
    Ids;
fill(E, Left, Ids) ->
    Sessions = [session(persistent_term:get(value)) || _ <- lists:seq(1, min(Left, 1000))],
    store_all(E, Sessions),
    fill(E, Left - length(Sessions), [element(2, S) || S <- Sessions] ++ Ids).

%% -- running a case ------------------------------------------------------------------------------------------------

%% {nanoseconds, units, latencies}. What a run adds it removes again, outside of its time.
run(E, create_many, Sessions, Callers) ->
    {Ns, Made, Latencies} = in_callers(E, create_many, Sessions div ?BATCH, Callers),
    remove_all(E, lists:append(Made)),
    {Ns, length(Latencies) * ?BATCH, Latencies};
run(E, create, Calls, Callers) ->
    {Ns, Made, Latencies} = in_callers(E, create, Calls, Callers),
    remove_all(E, Made),
    {Ns, length(Latencies), Latencies};
run(E, ids, Calls, Callers) ->
    {Ns, Counts, Latencies} = in_callers(E, ids, Calls, Callers),
    {Ns, lists:sum(Counts), Latencies};
run(E, expire_due, Sessions, _) ->
    store_all(E, [session(persistent_term:get(value), -1) || _ <- lists:seq(1, Sessions)]),
    Started = erlang:monotonic_time(nanosecond),
    Removed = expire_due(E, now_ms()),
    Ns = erlang:monotonic_time(nanosecond) - Started,
    {Ns, Removed, [Ns]};
run(E, Operation, Calls, Callers) ->
    {Ns, _, Latencies} = in_callers(E, Operation, Calls, Callers),
    {Ns, length(Latencies), Latencies}.

in_callers(E, Operation, Calls, Callers) ->
    Self = self(),
    Share = max(1, Calls div Callers),
    Skew = get(skew),
    Pids = [spawn_link(fun() -> caller(Self, E, Operation, Share, Skew) end) || _ <- lists:seq(1, Callers)],
    [receive {ready, Pid} -> ok end || Pid <- Pids],
    Started = erlang:monotonic_time(nanosecond),
    [Pid ! go || Pid <- Pids],
    [receive {finished, Pid} -> ok end || Pid <- Pids],
    Ns = erlang:monotonic_time(nanosecond) - Started,
    Results = [receive {results, Pid, Answers, Latencies} -> {Answers, Latencies} end || Pid <- Pids],
    {Ns, lists:append([A || {A, _} <- Results]), lists:append([L || {_, L} <- Results])}.

caller(Parent, E, Operation, Calls, Skew) ->
    put(skew, Skew),
    Given = given(E, Operation, Calls),
    Parent ! {ready, self()},
    receive go -> ok end,
    {Answers, Latencies} =
        case Operation of
            [_ | _] -> calls(E, mixed, Given, [], []);
            _ -> calls(E, Operation, Given, [], [])
        end,
    Parent ! {finished, self()},
    Parent ! {results, self(), Answers, Latencies}.

%% What each call is about, chosen before the time is taken.
given(_, Operation, Calls) when Operation =:= create; Operation =:= create_many; Operation =:= ids ->
    lists:duplicate(Calls, none);
given(E, delete, Calls) ->
    Sessions = [session(persistent_term:get(value)) || _ <- lists:seq(1, Calls)],
    store_all(E, Sessions),
    [element(2, S) || S <- Sessions];
given(_, [_ | _] = Mix, Calls) ->
    [{drawn(Mix, rand:uniform()), an_id()} || _ <- lists:seq(1, Calls)];
given(_, _, Calls) ->
    [an_id() || _ <- lists:seq(1, Calls)].

drawn([{_, Operation}], _) -> Operation;
drawn([{Sum, Operation} | _], At) when At < Sum -> Operation;
drawn([_ | More], At) -> drawn(More, At).

%% The ids are random, so that of neighbouring ranks are strewn over the table.
an_id() ->
    Ids = persistent_term:get(ids),
    case get(skew) of
        "zipf" ->
            Sums = persistent_term:get(sums),
            At = rand:uniform() * element(tuple_size(Sums), Sums),
            element(ranked(Sums, At, 1, tuple_size(Sums)), Ids);
        _ ->
            element(rand:uniform(tuple_size(Ids)), Ids)
    end.

%% The first rank whose sum of weights reaches At.
ranked(_, _, Rank, Rank) ->
    Rank;
ranked(Sums, At, Low, High) ->
    Middle = (Low + High) div 2,
    case element(Middle, Sums) < At of
        true -> ranked(Sums, At, Middle + 1, High);
        false -> ranked(Sums, At, Low, Middle)
    end.

calls(_, _, [], Answers, Latencies) ->
    {Answers, Latencies};
calls(E, Operation, [Given | More], Answers, Latencies) ->
    Started = erlang:monotonic_time(nanosecond),
    Answer = call(E, Operation, Given),
    Latency = erlang:monotonic_time(nanosecond) - Started,
    calls(E, Operation, More, [Answer | Answers], [Latency | Latencies]).

call(E, create, _) ->
    Session = session(persistent_term:get(value)),
    ok = store(E, Session),
    element(2, Session);
call(E, create_many, _) ->
    Sessions = [session(persistent_term:get(value)) || _ <- lists:seq(1, ?BATCH)],
    store_all(E, Sessions),
    [element(2, S) || S <- Sessions];
call(E, get, Id) ->
    [{session, _, _, _, Expires, #{csrf := Token}}] = lookup(E, Id),
    true = Expires > now_ms(),
    byte_size(Token);
call(E, update, Id) ->
    change(E, Id, fun(S, Now) ->
        setelement(6, stamped(S, Now), maps:put(visits, Now, element(6, S)))
    end);
call(E, get_update, Id) ->
    call(E, get, Id),
    call(E, update, Id);
call(E, mixed, {Operation, Id}) ->
    call(E, Operation, Id);
call(E, touch, Id) ->
    touch(E, Id);
call(E, delete, Id) ->
    ok = remove(E, Id);
call(E, ids, _) ->
    length(ids(E)).

stamped(Session, Now) -> setelement(4, setelement(5, Session, Now + ?LIFETIME_MS), Now).

remove_all(E, Ids) -> lists:foreach(fun(Id) -> remove(unsynced(E), Id) end, Ids).

unsynced({Engine, _}) -> {Engine, false}.

%% -- the engines ---------------------------------------------------------------------------------------------------

open({ets, _}, _) ->
    session = new_table();
open({ets_server, _}, _) ->
    {ok, _} = gen_server:start_link({local, owner}, ?MODULE, [], []);
open({dets, _}, Directory) ->
    File = filename:join(Directory, "sessions.dets"),
    {ok, session} = dets:open_file(session, [{file, File}, {keypos, 2}, {type, set}]);
open({mnesia, _}, Directory) ->
    ok = configured(Directory),
    ok = mnesia:start(),
    Fields = [id, created, accessed, expires, data],
    case os:getenv("SESSIONS_FOLLOWER") of
        false ->
            {atomic, ok} = mnesia:change_table_copy_type(schema, node(), disc_copies),
            {atomic, ok} = mnesia:create_table(session, [{disc_copies, [node()]}, {attributes, Fields}]);
        _ ->
            ok
    end.

%% What is there already.
open_again({dets, _} = E, Directory) ->
    open(E, Directory);
open_again({mnesia, _}, Directory) ->
    ok = configured(Directory),
    ok = mnesia:start(),
    ok = mnesia:wait_for_tables([session], infinity).

configured(Directory) ->
    ok = application:set_env(mnesia, dir, Directory, [{persistent, true}]),
    ok = application:set_env(mnesia, dump_log_write_threshold, 50000, [{persistent, true}]),
    case application:load(mnesia) of
        {error, {already_loaded, mnesia}} -> ok;
        ok -> ok
    end.

new_table() ->
    ets:new(session, [
        named_table, public, set, {keypos, 2}, {read_concurrency, true}, {write_concurrency, true}
    ]).

%% A copy of the table on another node, on its disk too.
follow(Node) ->
    pong = net_adm:ping(Node),
    {ok, [Node]} = mnesia:change_config(extra_db_nodes, [Node]),
    {atomic, ok} = mnesia:change_table_copy_type(schema, Node, disc_copies),
    {atomic, ok} = mnesia:add_table_copy(session, Node, disc_copies).

store({ets, _}, Session) ->
    true = ets:insert(session, Session),
    ok;
store({ets_server, _}, Session) ->
    gen_server:call(owner, {put, Session}, infinity);
store({dets, _} = E, Session) ->
    ok = dets:insert(session, Session),
    synced(E);
store({mnesia, _} = E, Session) ->
    ok = transaction(fun() -> mnesia:write(Session) end),
    synced(E).

store_all({ets, _}, Sessions) ->
    true = ets:insert(session, Sessions),
    ok;
store_all({ets_server, _}, Sessions) ->
    gen_server:call(owner, {put, Sessions}, infinity);
store_all({dets, _} = E, Sessions) ->
    ok = dets:insert(session, Sessions),
    synced(E);
store_all({mnesia, _} = E, Sessions) ->
    ok = transaction(fun() -> lists:foreach(fun mnesia:write/1, Sessions) end),
    synced(E).

lookup({dets, _}, Id) -> dets:lookup(session, Id);
lookup({mnesia, _}, Id) -> mnesia:dirty_read(session, Id);
lookup(_, Id) -> ets:lookup(session, Id).

change({ets, _}, Id, Function) ->
    [Session] = ets:lookup(session, Id),
    ets:insert(session, Function(Session, now_ms()));
change({ets_server, _}, Id, Function) ->
    gen_server:call(owner, {change, Id, Function}, infinity);
change({dets, _} = E, Id, Function) ->
    [Session] = dets:lookup(session, Id),
    ok = dets:insert(session, Function(Session, now_ms())),
    synced(E);
change({mnesia, _} = E, Id, Function) ->
    ok = transaction(fun() ->
        [Session] = mnesia:wread({session, Id}),
        mnesia:write(Function(Session, now_ms()))
    end),
    synced(E).

touch({ets, _}, Id) ->
    Now = now_ms(),
    ets:update_element(session, Id, [{4, Now}, {5, Now + ?LIFETIME_MS}]);
touch({ets_server, _}, Id) ->
    gen_server:call(owner, {touch, Id}, infinity);
touch(E, Id) ->
    change(E, Id, fun stamped/2).

remove({ets, _}, Id) ->
    true = ets:delete(session, Id),
    ok;
remove({ets_server, _}, Id) ->
    gen_server:call(owner, {remove, Id}, infinity);
remove({dets, _} = E, Id) ->
    ok = dets:delete(session, Id),
    synced(E);
remove({mnesia, _} = E, Id) ->
    ok = transaction(fun() -> mnesia:delete({session, Id}) end),
    synced(E).

ids({dets, _}) -> dets:select(session, [{{session, '$1', '_', '_', '_', '_'}, [], ['$1']}]);
ids({mnesia, _}) -> mnesia:dirty_all_keys(session);
ids(_) -> ets:select(session, [{{session, '$1', '_', '_', '_', '_'}, [], ['$1']}]).

expire_due({ets_server, _}, Now) ->
    gen_server:call(owner, {expire_due, Now}, infinity);
expire_due({ets, _}, Now) ->
    ets:select_delete(session, due(Now, [true]));
expire_due({dets, _} = E, Now) ->
    Removed = dets:select_delete(session, due(Now, [true])),
    synced(E),
    Removed;
expire_due({mnesia, _} = E, Now) ->
    Ids = mnesia:dirty_select(session, due(Now, ['$1'])),
    ok = transaction(fun() ->
        lists:foreach(fun(Id) -> mnesia:delete({session, Id}) end, Ids)
    end),
    synced(E),
    length(Ids).

due(Now, Result) -> [{{session, '$1', '_', '_', '$2', '_'}, [{'=<', '$2', Now}], Result}].

clear({dets, _}) -> ok = dets:delete_all_objects(session);
clear({mnesia, _}) -> {atomic, ok} = mnesia:clear_table(session);
clear(_) -> true = ets:delete_all_objects(session).

%% With a copy on another node the answer waits until that one has committed: without, the other node aborts
%% what it has not yet been told to commit when this one dies, although it was answered.
transaction(Function) ->
    Kind = persistent_term:get(transaction, transaction),
    {atomic, Result} = mnesia:Kind(Function),
    Result.

synced({_, false}) -> ok;
synced({dets, true}) -> ok = dets:sync(session);
synced({mnesia, true}) -> ok = mnesia:sync_log().

%% -- the server that owns the table: all changes go through it, reads do not -------------------------------------------

init([]) ->
    session = new_table(),
    {ok, none}.

handle_call({put, Sessions}, _, State) ->
    ets:insert(session, Sessions),
    {reply, ok, State};
handle_call({change, Id, Function}, _, State) ->
    [Session] = ets:lookup(session, Id),
    ets:insert(session, Function(Session, now_ms())),
    {reply, ok, State};
handle_call({touch, Id}, _, State) ->
    touch({ets, false}, Id),
    {reply, ok, State};
handle_call({remove, Id}, _, State) ->
    ets:delete(session, Id),
    {reply, ok, State};
handle_call({expire_due, Now}, _, State) ->
    {reply, ets:select_delete(session, due(Now, [true])), State}.

handle_cast(_, State) -> {noreply, State}.
