// The tabs of a first visit. The ids are those of the demo data, which are the same on every server.
import agent from './examples/agent.graphql?raw';
import board from './examples/board.graphql?raw';
import feed from './examples/feed.graphql?raw';
import home from './examples/home.graphql?raw';
import live from './examples/live.graphql?raw';
import talk from './examples/talk.graphql?raw';
import team from './examples/team.graphql?raw';
import teamActivity from './examples/team-activity.graphql?raw';

const example = (query, id) => ({ query, variables: id && JSON.stringify({ id }, null, 2) });

export const examples = [
  example(team, 'circle_01ke6p4zk8e03r000000000001'),
  example(teamActivity, 'circle_01ke6p4zk8e03r000000000001'),
  example(home),
  example(agent, 'agent_01ke6p4zk8e02r000000000001'),
  example(board, 'project_01ke6p4zk8e038000000000001'),
  example(talk, 'conversation_01ke6p4zk8e05r000000000001'),
  example(feed),
  example(live, 'circle_01ke6p4zk8e03r000000000001'),
];
